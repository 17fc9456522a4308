"""Benchmarks of modules of experts: the common subject, the check at the timed size, the measurement and its work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import optimized
import reference
from conformance.bench import measurement, work
from conformance.bench.cases import Size
from conformance.bench.layers import Contender, Problem
from conformance.bench.measured_case import FROZEN, MEASURED
from conformance.bench.mixtures import AdaptedLayer, MixtureAgreement, MixtureOperands, with_common_subject
from conformance.clauses.experts.small_experts import GatedExperts
from conformance.errors import UsageError
from conformance.judgement.outcomes import Violation
from conformance.target.target import Target
from conformance.targets import expert_loop
from tests.support.timed_targets import CEILINGS, QUICK

PROBLEM = Problem(Size(12, 8, 16, 4, 3), "float32", mixture=True)


def module(name: str, patch: Any) -> Contender:
    """Wrap a function as a target with only `patch_moe_module`."""
    return Contender(Target.of(SimpleNamespace(patch_moe_module=patch), name), "patch_moe_module")


def checked(patch: Any, problem: Problem = PROBLEM) -> float:
    """The worst error ÷ budget of a target's module at the timed size."""
    operands = MixtureOperands(problem)
    return MixtureAgreement(problem, operands).check(AdaptedLayer(module("timed", patch), operands))


@pytest.mark.parametrize("package", [reference, optimized, expert_loop])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_right_modules_agree_at_the_timed_size(package: Any, dtype: str) -> None:
    problem = Problem(PROBLEM.size, dtype, mixture=True)
    assert checked(package.patch_moe_module, problem) <= 1


def halved(orig_module: Any, dim: int, alpha: int) -> Any:
    return reference.patch_moe_module(orig_module, dim, alpha / 2)


def without_router(orig_module: Any, dim: int, alpha: int) -> Any:
    adapted: Any = reference.patch_moe_module(orig_module, dim, alpha)
    forward = adapted.forward
    adapted.forward = lambda x, index, p: forward(x, index, p.detach())
    return adapted


@pytest.mark.parametrize(("patch", "says"), [(halved, "worst    y"), (without_router, "dp is None")])
def test_a_wrong_result_is_named(patch: Any, says: str) -> None:
    with pytest.raises(Violation, match=says):
        checked(patch)


def test_modules_of_two_targets_are_timed_over_frozen_experts() -> None:
    timed = [module(p.__name__, p.patch_moe_module) for p in (optimized, expert_loop)]
    case = measurement.measure(PROBLEM, timed, CEILINGS, QUICK)
    assert case.case == "12x8x16 r4 e3 float32, modules of two projections"
    assert case.frozen.label == "frozen experts"
    assert [row.status for row in case.layers] == [MEASURED] * 2
    assert all(row.costs and row.costs.over[FROZEN].median > 0 for row in case.layers)
    forward, _ = case.least_work.adapted
    rows = 2 * 12  # a token has two experts
    assert forward.flops == 2 * rows * (8 * 32 + 16 * 8 + 4 * (8 + 32) + 4 * (16 + 8))
    frozen, _ = work.modules(PROBLEM.size, 4, 1)
    assert frozen[0].flops * 2 == case.least_work.frozen[0].flops


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_frozen_experts_give_what_a_loop_over_them_gives(dtype: str) -> None:
    operands = MixtureOperands(Problem(PROBLEM.size, dtype, mixture=True))
    looped = operands.mixture.experts
    looped.__class__ = GatedExperts
    torch.testing.assert_close(
        operands.frozen(operands.x), looped(operands.x, operands.frozen.index, operands.frozen.p.detach())
    )


def test_the_subject_that_all_targets_have_is_timed() -> None:
    def named(*names: str) -> Contender:
        target = Target.of(SimpleNamespace(**dict.fromkeys(names, print)), names[0])
        return Contender(target, "lora_grouped_linear")

    both, rows, modules = (
        named("lora_grouped_linear", "patch_moe_module"),
        named("lora_grouped_linear"),
        named("patch_moe_module"),
    )
    assert [c.subject for c in with_common_subject([both, rows])] == ["lora_grouped_linear"] * 2
    assert [c.subject for c in with_common_subject([both, modules])] == ["patch_moe_module"] * 2
    says = r"in common \(lora_grouped_linear: lora_grouped_linear, patch_moe_module: patch_moe_module\): measure them"
    with pytest.raises(UsageError, match=says):
        with_common_subject([rows, modules])
