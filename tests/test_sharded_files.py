"""Adapter files of whole sharded models: fully_shard, tensor parallelism, both, and errors on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optimized
import reference
from conformance.clauses.checkpoint.peft_files import CONFIG, TENSORS
from conformance.clauses.checkpoint.target_calls import fill
from conformance.clauses.distributed.ranks import on_ranks
from conformance.clauses.distributed.wrapped_layer import mesh_of
from conformance.clauses.model.small_models import Toy

TOKENS = torch.tensor([[1, 4, 7], [2, 0, 10]])


def model_of(implementation: Any = reference, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = Toy(6)
    config = implementation.PeftConfig(dim=3, alpha=6, target_modules=["*.fc*", "head"], **options)
    implementation.apply_lora_to_linear_modules(model, config)
    fill(model, 0)
    return model, config


def sharded(world: int, how: str, **options: Any) -> tuple[nn.Module, Any]:
    """The model as a training run shards it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import parallelize_module

    model, config = model_of(**options)
    mesh = mesh_of(world)
    if how == "both":
        grid = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
        mesh = grid["data"]
        styles = {"fc1": reference.colwise_parallel_lora(output_layouts=Replicate())}
        for block in model.blocks:  # type: ignore[union-attr]
            parallelize_module(block, grid["tensor"], styles)
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, config


def reshard(model: nn.Module) -> None:
    from torch.distributed.fsdp import FSDPModule

    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize(("world", "how", "use_dora"), [(2, "fully_shard", True), (4, "both", False)])
def test_a_sharded_model_has_the_files_of_the_whole_model(tmp_path: Path, world: int, how: str, use_dora: bool) -> None:
    def work(_: int) -> dict[str, Any]:
        model, config = sharded(world, how, use_dora=use_dora)
        model.unshard()  # type: ignore[operator]
        reference.save_adapter(model, config, tmp_path / "ranks")
        other, _config = sharded(world, how, use_dora=use_dora)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if "lora_" in name:
                    parameter.mul_(2)
        other.unshard()  # type: ignore[operator]  # as forward leaves the root of a model
        reference.load_adapter(other, tmp_path / "ranks")
        reshard(other)  # drops what was loaded into gathered parameters only
        trainable = sorted(name for name, p in other.named_parameters() if p.requires_grad)
        return {"y": other(TOKENS).detach(), "of": model(TOKENS).detach(), "trainable": trainable}

    model, config = model_of(use_dora=use_dora)
    reference.save_adapter(model, config, tmp_path / "one")
    for answer in on_ranks(world, work):
        assert torch.equal(answer["y"], answer["of"])
        assert answer["trainable"] == sorted(name for name, _ in model.named_parameters() if "lora_" in name)
    assert files(tmp_path / "ranks") == files(tmp_path / "one")
    torch.manual_seed(0)
    plain = Toy(6)
    optimized.load_adapter(plain, tmp_path / "ranks")
    torch.testing.assert_close(plain(TOKENS), model(TOKENS))


def test_every_rank_says_which_rank_failed(tmp_path: Path) -> None:
    model, config = model_of()
    reference.save_adapter(model, config, tmp_path / "one")
    (tmp_path / "no folder").write_text("")

    def work(rank: int) -> dict[str, Any]:
        model, config = sharded(2, "fully_shard")
        said = {}
        for name, call in {
            "save": lambda: reference.save_adapter(model, config, tmp_path / "no folder"),
            "load": lambda: reference.load_adapter(model, tmp_path / ("one" if rank == 0 else "nowhere")),
        }.items():
            try:
                call()
            except OSError as error:
                said[name] = str(error)
        return said

    first, second = on_ranks(2, work)
    assert second["save"].startswith("rank 0 failed: ")
    assert "File exists" in first["save"]
    assert first["load"].startswith("rank 1 failed: ")
    assert "nowhere" in second["load"]
    assert set(files(tmp_path / "one")) >= {CONFIG, TENSORS}


def test_what_a_sharded_model_cannot_do_is_refused(tmp_path: Path) -> None:
    model, config = model_of()
    reference.save_adapter(model, config, tmp_path)

    def work(_: int) -> dict[str, Any]:
        from torch.distributed.fsdp import fully_shard

        plain = Toy(6)
        fully_shard(plain, mesh=mesh_of(2))
        said = []
        training = reference.LoraTraining(model_of()[0])
        fully_shard(training.inference_model, mesh=mesh_of(2))
        for call in (
            lambda: reference.load_adapter(plain, tmp_path),
            lambda: reference.save_training(training, tmp_path / "run"),
        ):
            try:
                call()
            except ValueError as error:
                said.append(str(error))
        return {"said": said}

    for answer in on_ranks(2, work):
        load, save = answer["said"]
        assert "blocks.0.fc1 is sharded and has no adapter: load the adapter first, then shard the model" in load
        assert "is sharded over several ranks: expected the run of one process; save the run with" in save
    assert not (tmp_path / "run").exists()
