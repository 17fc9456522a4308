"""The norm of gradients that are DTensors: the norm of the whole gradients on every rank, and clipping."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.distributed.rank_operands import judge_all, power_of_two
from conformance.clauses.distributed.ranks import on_ranks
from conformance.clauses.distributed.wrapped_layer import mesh_of, whole
from conformance.judgement.judge import worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import dtype_named, format_of, rounded
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

WITHIN = 1e-3  # relative error of the norm, as in group gradnorm
SHAPES = ((3, 2), (1, 5), (5, 1), (4, 4), (2, 3), (8, 3), (1, 1), (7, 2))
SIZES = {"huge": 1e25, "tiny": 1e-30}


@dataclass(frozen=True)
class ShardsCase(Case):
    """Gradients that are spread over ranks.

    Fields:
        world: the number of ranks.   tensors: the number of gradients.   clip: max_norm ÷ norm.
        spread: shards of `rows` or `columns`, `copies` on every rank, `sums` of the ranks' parts (Partial), or a `grid`
            of data and tensor parallelism; `mixed` takes these in turn, with plain tensors among them.
        values: `normal` (of order one), `huge` (their squares overflow) or `tiny`.
        special: one element is `nan` or `inf`.
    """

    world: int = 1
    tensors: int = 1
    spread: str = "rows"
    values: str = "normal"
    clip: float = 0.5
    special: str = "none"


SPREADS = ("rows", "columns", "copies", "sums", "grid")


def _tamed(case: ShardsCase) -> ShardsCase:
    """The case on a power of two of ranks, so that a grid of two rows is possible."""
    return dataclasses.replace(case, world=power_of_two(case.world))


SHARDS = Space(
    ShardsCase, tame=_tamed, world=(1, 2, 4), tensors=(1, 2, 3, 6), spread=(*SPREADS, "mixed"), clip=(0.5, 0.25, 0.0625)
)


class Shards:
    """The gradients of a case: as whole arrays, and as the parameters of a rank that hold them.

    Attributes:
        narrow: whether the norm has the gradients' dtype, as the target declares.
        refusable: whether the target may refuse them, because they are on several meshes or on none.
    """

    def __init__(self, subject: Subject, case: ShardsCase) -> None:
        self.case, self.dtype = case, dtype_named(case.dtype)
        self.narrow = subject.follows("norm_dtype", "gradients")
        self.refusable = case.spread == "mixed" and subject.lacks("mixed_meshes")
        random = np.random.default_rng([case.seed, case.tensors])
        size = SIZES.get(case.values, 1.0)
        shapes = [SHAPES[(case.seed + i) % len(SHAPES)] for i in range(case.tensors)]
        drawn = [random.standard_normal(shape) for shape in shapes]
        # no element is so small that the norm would be the same without it
        self.values = [rounded((np.sign(v) * (np.abs(v) + 0.5)) * size, self.dtype) for v in drawn]
        if case.special != "none":
            self.values[0].flat[case.seed % self.values[0].size] = float(case.special)

    @cached_property
    def norm(self) -> float:
        """The norm of all gradients."""
        largest = max(float(np.abs(v).max()) for v in self.values)
        return largest * math.sqrt(sum(float(((v / largest) ** 2).sum()) for v in self.values))

    @property
    def max_norm(self) -> float:
        """The max_norm of the case."""
        return self.case.clip * self.norm

    def parameters(self) -> list[nn.Parameter]:
        """The parameters on this rank, each with its gradient."""
        found = []
        for index, values in enumerate(self.values):
            gradient = self._spread(torch.from_numpy(values.copy()).to(self.dtype), index)
            found.append(nn.Parameter(torch.zeros_like(gradient)))
            found[-1].grad = gradient
        return found

    def _spread(self, tensor: torch.Tensor, index: int) -> torch.Tensor:
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

        world, spread = self.case.world, self.case.spread
        if spread == "mixed":
            spread = (*SPREADS, "plain")[index % (len(SPREADS) + 1)]
        if spread == "plain":
            return tensor
        if spread == "grid" and world > 1:
            mesh = mesh_of(2, world // 2)
            return distribute_tensor(tensor, mesh, [Shard(0), Shard(1)] if index % 2 else [Replicate(), Shard(0)])
        mesh = mesh_of(world)
        if spread == "sums":
            return DTensor.from_local(tensor / world, mesh, [Partial()], run_check=False)
        placement = {"columns": Shard(1), "copies": Replicate()}.get(spread, Shard(0))
        return distribute_tensor(tensor, mesh, [placement])

    @property
    def norm_error(self) -> float:
        """The relative error of the norm that is allowed."""
        # a narrow norm is rounded for each gradient, on each rank, and when the ranks' squares are added
        return WITHIN + self.narrow * (4 + 2 * self.case.world) * format_of(self.dtype).unit

    def expected_norm(self) -> Expected:
        """The expected norm, in float64 for float64, else in float32; if it is narrow, in the gradients' dtype."""
        dtype = self.dtype if self.narrow or self.dtype == torch.float64 else torch.float32
        return Expected("norm", np.array(self.norm), np.array(self.norm * self.norm_error), dtype)

    def expected_clipped(self, index: int) -> Expected:
        """The expected gradient times ``max_norm/(norm + 1e-6)``; with Partial each rank rounds its own part."""
        clipped = self.values[index] * min(1.0, self.max_norm / (self.norm + 1e-6))
        form = format_of(self.dtype)
        relative = self.norm_error + (3 + 2 * self.narrow + self.case.world) * form.unit
        allowed = np.abs(clipped) * relative + self.case.world * form.step
        return Expected(f"gradient {index} after clipping", clipped, allowed, self.dtype)


def clipped(subject: Subject, shards: Shards, max_norm: float) -> dict[str, torch.Tensor]:
    """The norm that this rank gets, and the whole gradients after clipping; empty if they are refused and may be."""
    parameters = shards.parameters()
    with calling(f"clip_grad_norm_ of {len(parameters)} gradients with max_norm={max_norm:.6g}"):
        try:
            norm = subject.thing(parameters, max_norm)
        except (RuntimeError, ValueError, NotImplementedError):
            if not shards.refusable:
                raise
            return {}
    found = {"norm": whole(norm, "the norm")}
    return found | {str(i): whole(p.grad, f"gradient {i}") for i, p in enumerate(parameters)}


def refused(answers: list[dict[str, torch.Tensor]]) -> bool:
    """Whether the gradients were refused, which must be on every rank or on none."""
    alone = [rank for rank, answer in enumerate(answers) if not answer]
    require(len(alone) in (0, len(answers)), f"clip_grad_norm_ refused the gradients on ranks {alone} alone")
    return bool(alone)


def judge_norm(subject: Subject, case: ShardsCase) -> float | None:
    """Judge the norm on every rank, without clipping."""
    shards = Shards(subject, case)
    answers = on_ranks(case.world, lambda _: clipped(subject, shards, math.inf))
    if refused(answers):
        return None
    for rank, answer in enumerate(answers):
        same = torch.equal(answer["norm"], answers[0]["norm"])
        ratio = judge_all(answers, "norm", [shards.expected_norm()] * case.world)
        require(same, f"the norm on rank {rank} is {answer['norm']}, on rank 0 {answers[0]['norm']}: not the same bits")
    return ratio


@clause(
    "DIS-NORM",
    sentence="""clip_grad_norm_ returns the norm of the whole gradients within 1e-3, the same bits on every rank.
    Gradients may be DTensors on one mesh or several, with plain tensors among them. Shards, which may be uneven or
    empty, are summed over ranks; replicated tensors count once; pending sums (Partial) are reduced before they are
    squared.""",
    why="The norm of a rank's own shards is too small, and ranks that clip by different norms drift apart.",
    cases=SHARDS,
    subjects=("clip_grad_norm_",),
    dtypes=("float32", "float64", "bfloat16"),
    weight=0.34,
)
def test_norm_over_ranks(subject: Subject, case: ShardsCase) -> float | None:
    return judge_norm(subject, case)


@clause(
    "DIS-CLIP",
    sentence="""Every rank's part of each gradient is multiplied by min(1, max_norm/(norm + 1e-6)), where norm is the
    norm of the whole gradients, and this norm is returned.""",
    cases=SHARDS,
    subjects=("clip_grad_norm_",),
    dtypes=("float32", "float64", "bfloat16"),
    weight=0.34,
)
def test_clip_over_ranks(subject: Subject, case: ShardsCase) -> float | None:
    shards = Shards(subject, case)
    answers = on_ranks(case.world, lambda _: clipped(subject, shards, shards.max_norm))
    if refused(answers):
        return None
    return worst(
        judge_all(answers, "norm", [shards.expected_norm()] * case.world),
        *(judge_all(answers, str(i), [shards.expected_clipped(i)] * case.world) for i in range(case.tensors)),
    )


@clause(
    "DIS-NORM-RANGE",
    sentence="""The norm over ranks neither overflows nor underflows if it is itself representable, even if the
    squares of its elements are not.""",
    cases=SHARDS.narrowed(values=("huge", "tiny"), spread=("rows", "columns", "copies", "grid")),
    subjects=("clip_grad_norm_",),
    dtypes=("float32", "bfloat16"),
    weight=0.25,
)
def test_range_over_ranks(subject: Subject, case: ShardsCase) -> float | None:
    return judge_norm(subject, case)


@clause(
    "DIS-NONFINITE",
    sentence="""With error_if_nonfinite a NaN or infinity in one rank's part raises an error on every rank. No
    gradient is modified, and no rank is left waiting.""",
    why="If one rank raises alone, the others wait for it forever.",
    cases=SHARDS.narrowed(special=("nan", "inf"), tensors=(1, 2, 3), spread=("rows", "columns", "grid")),
    subjects=("clip_grad_norm_",),
    dtypes=("float32",),
    weight=0.25,
)
def test_nonfinite_over_ranks(subject: Subject, case: ShardsCase) -> None:
    shards = Shards(subject, case)

    def work(_: int) -> dict[str, Any]:
        parameters = shards.parameters()
        said = ""
        try:
            subject.thing(parameters, 1.0, error_if_nonfinite=True)
        except (RuntimeError, ValueError, ArithmeticError) as error:
            said = f"{type(error).__name__}: {error}"[:300]
        in_step = torch.ones(3)
        with calling("all_reduce after clip_grad_norm_"):
            torch.distributed.all_reduce(in_step)
        kept = [whole(p.grad, f"gradient {i}") for i, p in enumerate(parameters)]
        return {"said": said, "in step": in_step.tolist(), "gradients": kept}

    for rank, answer in enumerate(on_ranks(case.world, work)):
        where = f"on rank {rank} of {case.world}"
        require(answer["in step"] == [case.world] * 3, f"{where} the ranks are out of step after clip_grad_norm_")
        require(bool(answer["said"]), f"clip_grad_norm_(…, error_if_nonfinite=True) raised nothing {where}")
        for index, (value, kept) in enumerate(zip(shards.values, answer["gradients"], strict=True)):
            same = np.array_equal(kept.double().numpy(), value, equal_nan=True)
            require(same, f"gradient {index} was modified before clip_grad_norm_ raised {where}")
