"""Files of adapters that were trained on a packed base: those of a float base, which load onto either."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.clauses.checkpoint.peft_files import config_in, tensors_in
from conformance.clauses.quantised.case import SMALL, PackedCase
from conformance.clauses.quantised.oracle import PackedOracle
from conformance.clauses.quantised.packed_operands import PackedOperands, operands_of, packed_base
from conformance.clauses.quantised.storage_state import LAYERS, require_kept, stored_in
from conformance.isolation.memory_folder import in_memory
from conformance.judgement.judge import judge
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Instance, Subject, frozen_linear

FILES = ("save_adapter", "load_adapter", "apply_lora_to_linear_modules", "PeftConfig")


class Model(nn.Module):
    """A model of one linear layer, `proj`."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: torch.Tensor) -> Any:
        return self.proj(x)


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder, removed afterwards."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as path:
        yield Path(path)


def models(subject: Subject, case: PackedCase) -> tuple[Model, Model, PackedOperands, PackedOperands]:
    """A model on a packed base and one on the float layer, without adapters, with their operands."""
    packed, plain = operands_of(subject, case), operands_of(subject, case)
    return Model(packed_base(subject, packed)), Model(frozen_linear(plain)), packed, plain


def adapted(subject: Subject, model: Model, operands: PackedOperands) -> Any:
    """Adapt a model with the case's adapter, and return its config."""
    case = operands.case
    alpha = case.scale * case.r
    options: dict[str, Any] = {"dim": case.r, "alpha": int(alpha) if alpha.is_integer() else alpha}
    options |= {"lora_dtype": "float32", "target_modules": ["proj"]}
    with calling_quietly("apply_lora_to_linear_modules of a model on a packed base"):
        config = subject.target.PeftConfig(**options)
        subject.target.apply_lora_to_linear_modules(model, config)
    with torch.no_grad():
        for name in ("lora_A", "lora_B"):
            adapter_of(model.proj, name).copy_(operands.placed[name].tensor)
    return config


@clause(
    "QNT-FILE",
    sentence="""The files of an adapter on a packed base are those of the same adapter on the float layer: the same
    tensors and the same configuration, and nothing of the storage.""",
    why="Files that hold codes or scales load onto no other base, and a configuration that names one misleads.",
    cases=SMALL,
    dtypes=("float32",),
    subjects=LAYERS,
    needs=FILES,
    weight=0.34,
)
def test_same_files(subject: Subject, case: PackedCase) -> None:
    packed, plain, operands, others = models(subject, case)
    with folder() as first, folder() as second:
        for model, path, own in ((packed, first, operands), (plain, second, others)):
            config = adapted(subject, model, own)
            with calling("save_adapter"):
                subject.target.save_adapter(model, config, str(path))
        got, wanted = tensors_in(first), tensors_in(second)
        surplus, missing = sorted(got.keys() - wanted.keys()), sorted(wanted.keys() - got.keys())
        require(not surplus, f"the file of an adapter on a packed base holds {', '.join(surplus)} too")
        require(not missing, f"the file of an adapter on a packed base lacks {', '.join(missing)}")
        for name, tensor in wanted.items():
            same = got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)
            require(same, f"{name} is another tensor in the file of an adapter on a packed base")
        ours, theirs = config_in(first), config_in(second)
        unlike = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        require(not unlike, f"the configuration differs from that on a float layer in {', '.join(unlike)}")


@clause(
    "QNT-FILE-LOAD",
    sentence="""An adapter that was saved on a packed base loads onto a packed and onto a float base, adapted or not,
    and one that was saved on a float base loads onto a packed one: y is then that of the loaded adapter on the base's
    own numbers, and the storage is as it was.""",
    cases=SMALL,
    dtypes=("float32",),
    subjects=LAYERS,
    needs=FILES,
    weight=0.34,
)
def test_files_load(subject: Subject, case: PackedCase) -> float | None:
    packed, plain, operands, others = models(subject, case)
    to_float, adapted_first = case.seed % 3 == 0, case.seed % 2 == 0
    source, target = (packed, plain) if to_float else (plain, packed)
    if case.seed % 3 == 2:
        source = Model(packed_base(subject, operands_of(subject, case)))
    own = others if to_float else operands
    with folder() as path:
        config = adapted(subject, source, operands)
        with calling("save_adapter"):
            subject.target.save_adapter(source, config, str(path))
        if adapted_first:
            adapted(subject, target, own)
            with torch.no_grad():
                adapter_of(target.proj, "lora_B").add_(1)
        before = None if to_float else stored_in(subject, target.proj, (own.case.n, own.case.k))
        with calling_quietly("load_adapter"):
            subject.target.load_adapter(target, str(path))
    what = "load_adapter onto a packed base"
    if before is not None:
        require_kept(subject, before, target.proj, what)
    instance = Instance(target.eval(), {"x": own.placed["x"].tensor}, own)
    return judge(instance.forward(), PackedOracle(own).y)
