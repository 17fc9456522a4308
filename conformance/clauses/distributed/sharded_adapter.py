"""Adapter files of sharded layers: every rank calls `save_adapter` or `load_adapter`, and one writes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.cases.case import Space
from conformance.cases.operands import Operands
from conformance.clauses.checkpoint.peft_files import PREFIX, TENSORS, tensors_in
from conformance.clauses.distributed.data_parallel import LAYERS
from conformance.clauses.distributed.rank_operands import RANKS, RanksCase, judge_all, tamed
from conformance.clauses.distributed.ranks import on_ranks
from conformance.clauses.distributed.tensor_parallel import NEEDS, STYLES, styled
from conformance.clauses.distributed.wrapped_layer import ADAPTER, whole
from conformance.clauses.model.target_calls import make_config
from conformance.isolation.memory_folder import in_memory
from conformance.judgement.judge import worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import fault_of
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import TRAINABLE, Subject

FILES = (*NEEDS, "save_adapter", "load_adapter", "PeftConfig")


@dataclass(frozen=True)
class AdapterCase(RanksCase):
    """A sharded layer whose adapter is saved or loaded.

    Fields:
        how: `sharded` or `plain`, the layer that loads the file; or `one rank` or `no place`, the failure of a load on
            a rank without the file, or of a save where the first rank cannot write.
    """

    how: str = "sharded"


def _tamed(case: AdapterCase) -> AdapterCase:
    fitted = tamed(case)
    assert isinstance(fitted, AdapterCase)
    return fitted


ADAPTERS = Space(
    AdapterCase,
    tame=_tamed,
    **(
        RANKS.values
        | {
            "world": (2, 4, 1),
            "strategy": ("fsdp", *STYLES),
            "values": ("normal",),
            "how": ("sharded", "plain", "one rank", "no place"),
        }
    ),
)


class Shards:
    """A layer on this rank, in a model; under fully_shard its parameters are gathered, as after a forward pass."""

    def __init__(self, subject: Subject, case: AdapterCase, rank: int, *, factor: float = 1.0) -> None:
        self.subject, self.case = subject, case
        self.instance = styled(subject, case, rank, TRAINABLE)
        self.instance.forward()
        layer = self.instance.module
        self.model: Any = self.instance.call if case.strategy == "fsdp" else nn.Sequential(layer)
        self.layer: Any = layer
        if case.strategy == "fsdp":
            self.layer.reshard()
        _scale(layer, factor)
        if case.strategy == "fsdp":
            self.layer.unshard()

    def save(self, path: str) -> None:
        """Save the adapter."""
        operands = self.subject.operands(self.case)
        alpha = operands.scale * self.case.r
        config = make_config(self.subject, dim=self.case.r, alpha=alpha, target_modules=["0.*"])
        with calling_quietly("save_adapter(model, config, path)"):
            self.subject.target.save_adapter(self.model, config, path)

    def load(self, path: str) -> None:
        """Load an adapter."""
        with calling_quietly("load_adapter(model, path)"):
            self.subject.target.load_adapter(self.model, path)

    def adapter(self) -> dict[str, torch.Tensor]:
        """The whole adapter, gathered from all ranks."""
        if self.case.strategy == "fsdp":
            self.layer.reshard()
        return {name: whole(adapter_of(self.layer, name), name) for name in ADAPTER}


@torch.no_grad()
def _scale(layer: Any, factor: float) -> None:
    """Multiply the adapter, so that it differs from the file's."""
    for name in ADAPTER:
        adapter_of(layer, name).mul_(factor)


@clause(
    "DIS-ADAPTER",
    sentence="""If every rank of a sharded layer (fully_shard, column-wise or row-wise) calls save_adapter, the file
    holds the whole adapter bit for bit, written by one rank, even if a forward pass has just gathered the parameters.
    If every rank calls load_adapter, each has its shard of the file; a layer that is not sharded loads the same file.
    If the file cannot be written, every rank raises. If one rank cannot read it, either every rank raises and no
    adapter changes, or the others tell it, and every rank loads the file.""",
    why="A file with the shard of one rank loads silently, with most of the adapter lost.",
    cases=ADAPTERS,
    subjects=LAYERS,
    needs=FILES,
    dtypes=("bfloat16",),
)
def test_sharded_adapter(subject: Subject, case: AdapterCase) -> float | None:
    operands = subject.operands(case)
    with tempfile.TemporaryDirectory(prefix="loraspec-", dir=in_memory(), ignore_cleanup_errors=True) as folder:
        path = str(Path(folder) / "adapter")
        if case.how == "no place":
            Path(path).write_text("a file where the folder should be", encoding="utf-8")
            raised = [seen["raised"] for seen in on_ranks(case.world, lambda rank: _unsaved(subject, case, rank, path))]
            for rank, error in enumerate(raised):
                require(bool(error), f"save_adapter raised nothing on rank {rank} although the file cannot be written")
            return None
        writers = sum(seen["wrote"] for seen in on_ranks(case.world, lambda rank: _saved(subject, case, rank, path)))
        require(writers <= 1, f"{writers} of {case.world} ranks wrote files: expected 1")
        _require_whole(operands, Path(path))
        if case.how == "plain":
            instance = subject.build(operands)
            _scale(instance.module, 2.0)
            with calling_quietly("load_adapter(model, path)"):
                subject.target.load_adapter(nn.Sequential(instance.module), path)
            answers = [{name: adapter_of(instance.module, name).detach() for name in ADAPTER}]
        elif case.how == "one rank":
            paths = [path] * (case.world - 1) + [str(Path(folder) / "nowhere")]
            answers = on_ranks(case.world, lambda rank: _tried(subject, case, rank, paths[rank]))
        else:
            answers = on_ranks(case.world, lambda rank: _loaded(subject, case, rank, path))
    failed = [bool(answer.get("raised")) for answer in answers]
    for rank, here in enumerate(failed):
        require(here or not any(failed), f"load_adapter raised nothing on rank {rank} although it did on another")
    what, factor = ("after a load that failed", 2.0) if any(failed) else ("after load_adapter", 1.0)
    expected = {
        name: Expected(f"{name} {what}", operands.values[name] * factor, None, operands.dtype) for name in ADAPTER
    }
    with fault_of("load_adapter"):
        return worst(*(judge_all(answers, name, [expected[name]] * len(answers)) for name in ADAPTER))


def _saved(subject: Subject, case: AdapterCase, rank: int, path: str) -> dict[str, Any]:
    """Save on this rank; report whether it wrote a file."""
    shards, wrote = Shards(subject, case, rank), _writes_below(path)
    shards.save(path)
    ended = bool(wrote)
    wrote.append("")  # the hook stays; its later entries do not count
    return {"wrote": ended}


def _loaded(subject: Subject, case: AdapterCase, rank: int, path: str) -> dict[str, torch.Tensor]:
    shards = Shards(subject, case, rank, factor=2.0)
    shards.load(path)
    return shards.adapter()


def _unsaved(subject: Subject, case: AdapterCase, rank: int, path: str) -> dict[str, Any]:
    """The error of a save that must fail, as text; empty if there is none."""
    shards = Shards(subject, case, rank)
    return {"raised": _error(lambda: shards.save(path))}


def _tried(subject: Subject, case: AdapterCase, rank: int, path: str) -> dict[str, Any]:
    """The error of a load that may fail, and the adapter after it."""
    shards = Shards(subject, case, rank, factor=2.0)
    return {"raised": _error(lambda: shards.load(path)), **shards.adapter()}


def _error(call: Callable[[], None]) -> str:
    try:
        call()
    except Exception as error:  # noqa: BLE001  (any error will do)
        return repr(error)
    return ""


def _writes_below(path: str) -> list[str]:
    """A list to which Python adds each file below a path that this process opens for writing or renames."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            mode, flags = arguments[1], arguments[2]
            writes = (
                any(c in mode for c in "wxa+") if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR))
            )
            if writes and os.fspath(arguments[0]).startswith(path):
                seen.append(os.fspath(arguments[0]))
        elif event == "os.rename" and str(arguments[1]).startswith(path):
            seen.append(str(arguments[1]))

    sys.addaudithook(hook)
    return seen


def _require_whole(operands: Operands, folder: Path) -> None:
    found = tensors_in(folder)
    with fault_of("save_adapter"):
        for name in ADAPTER:
            key = f"{PREFIX}0.{name}.weight"
            require(key in found, f"{TENSORS} has {', '.join(sorted(found))}: expected {key}")
            wanted = operands.tensor(name)
            assert wanted is not None
            got = list(found[key].shape)
            require(got == list(wanted.shape), f"{key} is {got} in the file: expected {list(wanted.shape)}")
            wrong = int((found[key] != wanted.cpu()).sum())
            require(not wrong, f"{wrong} of {wanted.numel()} elements of {key} are not the layer's")
