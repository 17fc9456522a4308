"""Known-bad twins of adapter files of sharded layers: ranks do not gather, scatter or agree."""

from __future__ import annotations

from pathlib import Path

import torch

import reference
from conformance.clauses.checkpoint.peft_files import CONFIG, PREFIX, TENSORS, tensors_in, written
from reference.sharded import local_part, reshard
from tests.baselines.distributed import Right, distributed_breaks


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def parts(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """This rank's shards of the adapter, by name."""
    reshard(model)
    return {name: local_part(p).detach() for name, p in model.named_parameters() if "lora_" in name}


@distributed_breaks("DIS-ADAPTER", says="in the file: expected")
class SavesTheShardOfTheFirstRank(Right):
    """Source: huggingface/accelerate #4206, NVIDIA-NeMo/Megatron-Bridge #2252."""

    def save_adapter(self, model, config, path):
        reference.save_adapter(model, config, path)
        shards = parts(model)
        if rank() == 0:
            Path(path, TENSORS).write_bytes(written({PREFIX + name: shard for name, shard in shards.items()}))


@distributed_breaks("DIS-ADAPTER", says="after load_adapter on rank")
class LoadsOnTheFirstRankOnly(Right):
    """Source: huggingface/accelerate #4206."""

    def load_adapter(self, model, path):
        before = {name: shard.clone() for name, shard in parts(model).items()}
        config = reference.load_adapter(model, path)
        if rank() > 0:
            for name, shard in parts(model).items():
                shard.copy_(before[name])
        return config


@distributed_breaks("DIS-ADAPTER", says="ranks wrote files: expected 1")
class WritesOnEveryRank(Right):
    """Source: huggingface/transformers #28297: ranks write one file at the same time."""

    def save_adapter(self, model, config, path):
        reference.save_adapter(model, config, path)
        for file in sorted(Path(path).iterdir()):
            data = file.read_bytes()
            file.with_name(f"{file.name}.{rank()}").write_bytes(data)


@distributed_breaks("DIS-ADAPTER", says="load_adapter raised nothing on rank")
class RaisesOnTheRankThatFailed(Right):
    def load_adapter(self, model, path):
        try:
            return reference.load_adapter(model, path)
        except (ValueError, OSError):
            if not Path(path, CONFIG).exists():
                raise
            return None


@distributed_breaks("DIS-ADAPTER", says="raised nothing on rank 1 although the file cannot be written")
class HidesTheFailureOfTheWriter(Right):
    def save_adapter(self, model, config, path):
        try:
            reference.save_adapter(model, config, path)
        except (ValueError, OSError):
            if rank() == 0:
                raise


@distributed_breaks("DIS-ADAPTER", says="raised")
class SavesWhatFullyShardGathered(Right):
    """Parameters that forward has gathered are no DTensors, and the twin refuses them."""

    def save_adapter(self, model, config, path):
        if torch.distributed.is_initialized() and not any(hasattr(p, "full_tensor") for p in model.parameters()):
            raise RuntimeError("expected DTensors")
        reference.save_adapter(model, config, path)


@distributed_breaks("DIS-ADAPTER", says="after a load that failed")
class LoadsBeforeTheRanksAgree(Right):
    def load_adapter(self, model, path):
        if Path(path, CONFIG).exists():
            with torch.no_grad():
                for name, shard in parts(model).items():
                    shard.fill_(next(iter(tensors_in(Path(path)).values())).flatten()[0] + 1 if name else 0)
        return reference.load_adapter(model, path)
