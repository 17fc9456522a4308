"""A table of adapters from one base on another: `python -m tests.support.packed_files`.

Adapters of a small Llama are trained for two steps on each base, packed in nf4 or float with the numbers that the codes
stand for, and saved. Each file is loaded onto each base. The table has the largest difference of the logits from those
of the trained model, relative to the largest logit. PEFT is left out where it, or bitsandbytes, is not installed.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import optimized
import reference
from conformance.clauses.checkpoint.peft_files import tensors_in
from conformance.demo import fine_tuning, learners
from conformance.demo.learners import Learner
from conformance.demo.packed_base import Contender, contenders

STEPS = 2


@dataclass(frozen=True)
class Exchange:
    """An adapter on another base.

    Attributes:
        difference: of the logits, relative to the largest.   effect: of the adapter on them, relative likewise.
        same_file: whether the adapter that the other base saves again has the same tensors, bit for bit.
    """

    source: str
    onto: str
    difference: float
    effect: float
    same_file: bool


def bases(task: fine_tuning.FineTuning) -> list[Contender]:
    """The task on each base, with the module that adapts it."""
    parts: dict[str, Any] = {"reference": reference, "optimized": optimized}
    of_peft: Any = None
    has_peft = importlib.util.find_spec("peft") is not None
    if has_peft and importlib.util.find_spec("bitsandbytes"):
        from conformance.targets import bitsandbytes_base as of_peft

        parts["peft"] = None
    found, _ = contenders(task, "nf4", parts, of_peft)
    return [*found, Contender("peft float", found[0].task, None)] if has_peft else found


def exchanges(sources: tuple[str, ...] = ()) -> Iterator[Exchange]:
    """Every exchange of an adapter; if `sources` are named, of those that were trained on these bases alone."""
    task = fine_tuning.prepared("llama", STEPS, 0)
    each = bases(task)
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder, "start")
        learners.start(task, start)
        for source in each:
            if sources and source.label not in sources:
                continue
            trained = Learner(source.task, source.label, source.parts, start, STEPS)
            before = _logits(trained)
            for window in task.windows:
                trained.step(window)
            wanted, saved = _logits(trained), Path(folder, source.label)
            trained.save(saved)
            for other in each:
                loaded = Learner(other.task, other.label, other.parts, saved, STEPS)
                again = Path(folder, f"{other.label} after {source.label}")
                loaded.save(again)
                off, size = (_logits(loaded) - wanted).abs().max(), wanted.abs().max()
                effect = (before - wanted).abs().max()
                yield Exchange(source.label, other.label, float(off / size), float(effect / size), _same(saved, again))


@torch.no_grad()
def _logits(learner: Learner) -> torch.Tensor:
    x, _ = learner.task.windows[0][0]
    return learner.task.logits(learner.model(**x))


def _same(one: Path, other: Path) -> bool:
    ours, theirs = tensors_in(one), tensors_in(other)
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def main() -> None:
    """Print the table."""
    print("| trained on | loaded onto | largest difference | same file again |\n| --- | --- | ---: | --- |")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in exchanges():
            same = "yes" if found.same_file else "no"
            print(f"| {found.source} | {found.onto} | {found.difference:.1e} | {same} |", flush=True)


if __name__ == "__main__":
    main()
