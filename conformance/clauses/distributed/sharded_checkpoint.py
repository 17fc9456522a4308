"""Sharded checkpoints: saved on some ranks with torch.distributed.checkpoint, loaded on any number of ranks."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch

from conformance.clauses.distributed.data_parallel import LAYERS
from conformance.clauses.distributed.rank_operands import RANKS, RanksCase, judge_all
from conformance.clauses.distributed.ranks import on_ranks
from conformance.clauses.distributed.tensor_parallel import STYLES, possible, styled
from conformance.clauses.distributed.wrapped_layer import refresh, whole
from conformance.isolation.memory_folder import in_memory
from conformance.judgement.judge import worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Subject

SAVING = 2  # the number of ranks that save
KEYS = {"weight": "weight", "bias": "bias", "lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}


@clause(
    "DIS-CKP",
    sentence="""The state_dict of a sharded layer has the same names as that of the whole layer. If 2 ranks save it
    with torch.distributed.checkpoint, then 1, 2 or 4 ranks can load it, and every parameter is the same bit for
    bit.""",
    cases=RANKS.narrowed(world=(1, 4, 2), strategy=("fsdp", *STYLES), values=("normal",), bias=(True,)),
    subjects=LAYERS,
    dtypes=("bfloat16",),
    weight=0.5,
)
def test_sharded_checkpoint(subject: Subject, case: RanksCase) -> float | None:
    case = possible(subject, case)
    operands = subject.operands(case)
    other = subject.follows("state_names", "other")
    held = {name: key for name, key in KEYS.items() if name in operands.values}
    expected = sorted(_state(subject.build(operands).module) if other else held.values())

    def save(path: str) -> Any:
        def work(rank: int) -> dict[str, Any]:
            from torch.distributed import checkpoint as imported

            checkpoint: Any = imported  # its type stubs lack save and load
            state = _state(styled(subject, _on(case, SAVING), rank, TRAINABLE).module)
            with calling("torch.distributed.checkpoint.save(layer.state_dict())"):
                checkpoint.save(state, checkpoint_id=path)
            return {"names": sorted(state)}

        return work

    def load(path: str) -> Any:
        def work(rank: int) -> dict[str, Any]:
            from torch.distributed import checkpoint as imported

            checkpoint: Any = imported
            instance = styled(subject, case, rank, TRAINABLE)
            with torch.no_grad():
                for tensor in instance.module.parameters():
                    tensor.zero_()
            state = _state(instance.module)
            with calling("torch.distributed.checkpoint.load(layer.state_dict())"):
                checkpoint.load(state, checkpoint_id=path)
            with calling("layer.load_state_dict(state_dict)"):
                instance.module.load_state_dict(state)
            refresh(instance)
            return {name: whole(instance.tensors[name], key) for name, key in held.items()}

        return work

    with tempfile.TemporaryDirectory(prefix="loraspec-", dir=in_memory(), ignore_cleanup_errors=True) as folder:
        path = str(Path(folder) / "checkpoint")
        for rank, saved in enumerate(on_ranks(SAVING, save(path))):
            names = saved["names"]
            require(names == expected, f"the state_dict on rank {rank} has {names}: expected {expected}")
        answers = on_ranks(case.world, load(path))
    what = f" saved on {SAVING} ranks and loaded on {case.world}"
    found = {name: Expected(f"{name}{what}", operands.values[name], None, operands.dtype) for name in held}
    return worst(*(judge_all(answers, name, [tensor] * case.world) for name, tensor in found.items()))


def _on(case: RanksCase, world: int) -> RanksCase:
    """The case with another number of ranks."""
    return dataclasses.replace(case, world=world)


def _state(layer: Any) -> dict[str, Any]:
    with calling("layer.state_dict()"):
        return dict(layer.state_dict())
