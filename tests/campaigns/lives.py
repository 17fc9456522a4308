"""`python -m tests.campaigns.lives` lets right layers, models and runs live, and counts false alarms.

Lives are random operations, and each round draws others. An alarm is printed with its case, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections import Counter
from fnmatch import fnmatch
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from conformance.clauses.life.life_case import LENGTH, LifeCase
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.specification.clause import Clause, load_all
from conformance.target.check_case import check_case
from conformance.target.target import Target
from tests.baselines.life import LivedLayer
from tests.baselines.life_run import LivedRun, LivedTraining
from tests.baselines.lived_model import AdaptedByParts, LivedModel, SavedByParts
from tests.known_bad.life.kept_weights import KeepsTheAdaptedWeight
from tests.known_bad.life.late_backward import ByNode


class KeepsNothingTwice(LivedLayer):
    """Computes the weight of every call, as `x (W + s·B A)ᵀ`."""

    def adapted(self, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        if self.training and self.dropout_p == 1.0:
            return super().adapted(x, weight, bias, A, B, scale)
        return torch.nn.functional.linear(x, weight + (B @ A * scale).to(weight.dtype), bias)


class CountsVersions(KeepsTheAdaptedWeight):
    """Keeps the adapted weight of inference by everything that it depends on."""


class Recomputes(LivedLayer):
    """Computes the update again in backward."""

    def update(self, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        y: Any = torch.utils.checkpoint.checkpoint(super().update, x, A, B, scale, use_reentrant=False)
        return y  # type: ignore[no-any-return]


class AccumulatesByHand(LivedTraining):
    """Takes gradients from autograd and adds them itself."""

    def _backward(self, loss: Tensor) -> None:
        trainable = [p for p in self.inference_model.parameters() if p.requires_grad]
        for parameter, gradient in zip(trainable, torch.autograd.grad(loss, trainable), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


class ZeroesInPlace(LivedTraining):
    """Keeps the tensors of its gradients, and clips by torch's own function."""

    def zero(self) -> None:
        self.inference_model.zero_grad(set_to_none=False)

    def clipped(self) -> Tensor | None:
        if self.max_grad_norm is None:
            return None
        trained = [p for p in self.inference_model.parameters() if p.requires_grad]
        return torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm)


RIGHT = (LivedLayer, ByNode, KeepsNothingTwice, CountsVersions, Recomputes)
LAYERS: dict[str, Any] = {kind.__name__: kind for kind in RIGHT}
MODELS: dict[str, Any] = {kind.__name__: kind for kind in (LivedModel, AdaptedByParts, SavedByParts)}
RUNS = {kind.__name__: kind for kind in (LivedTraining, AccumulatesByHand, ZeroesInPlace)}
LIBRARIES = ("reference", "optimized")


def target_named(name: str) -> Target:
    """Return a right layer or run, right functions for models, or a library, as a target."""
    thing: Any
    if name in LAYERS:
        thing = SimpleNamespace(LinearLoRA=LAYERS[name])
    elif name in RUNS:
        thing = type(name, (LivedRun,), {"LoraTraining": RUNS[name]})()
    else:
        thing = MODELS[name]() if name in MODELS else importlib.import_module(name)
    return Target.of(thing, name)


def lived(name: str, clause: Clause, number: int) -> tuple[Counter[str], list[str]]:
    """Live one life in each dtype; return the operations lived by dtype, and the alarms."""
    subject = target_named(name).subjects(clause)[0]
    counts: Counter[str] = Counter()
    alarms = []
    for dtype in clause.dtypes:
        case: LifeCase = clause.cases.draw(1, clause.id, number, dtype=dtype)
        try:
            check_case(clause, subject, case)
        except Inconclusive:
            counts["inconclusive"] += 1
        except (Violation, Refused) as alarm:
            alarms.append(f"{clause.id} {name} {case}\n{alarm}")
        else:
            counts[dtype] += len(case.operations)
    return counts, alarms


def main() -> int:
    """Parse the command line, live, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.lives", description=__doc__)
    parser.add_argument("--operations", type=int, default=14_000, help="for each implementation, over all dtypes")
    parser.add_argument("--first", type=int, default=0, help="the number of the first life")
    parser.add_argument(
        "--only", nargs="*", default=[*LAYERS, *MODELS, *RUNS, *LIBRARIES], help="these implementations"
    )
    parser.add_argument("--clause", default="*", help="clauses, as a pattern such as 'LIFE-MODEL*'")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clauses = [clause for clause in load_all(("life",)).values() if clause.group == "life"]
    total = Counter[str]()
    for name in options.only:
        counts: Counter[str] = Counter()
        target = target_named(name)
        own = [clause for clause in clauses if target.subjects(clause) and fnmatch(clause.id, options.clause)]
        number = options.first
        while own and sum(counts.values()) + LENGTH * counts["alarms"] < options.operations:
            found, alarms = lived(name, own[number % len(own)], number)
            number += 1
            counts += found
            counts["alarms"] += len(alarms)
            print(*alarms, sep="\n", end="\n" if alarms else "")
        if not own:
            continue
        print(
            f"{name:<20} " + "  ".join(f"{dtype} {counts[dtype]}" for dtype in (*FLOAT_DTYPES, "inconclusive")),
            flush=True,
        )
        total += counts
    print(f"{sum(total[dtype] for dtype in FLOAT_DTYPES)} operations, {total['alarms']} alarms")
    return 1 if total["alarms"] else 0


if __name__ == "__main__":
    sys.exit(main())
