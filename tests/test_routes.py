"""The routes of the Triton layer: the single persistent kernel conforms, and rules give reasons against each route."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conformance.judgement.outcomes import Inconclusive
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.check_case import check_case
from conformance.target.target import Target
from optimized import linear, matrices
from optimized.dispatch.routes import (
    CACHED_BYTES,
    why_not_kernels,
    why_not_one_kernel,
    why_not_one_reading,
)
from optimized.philox import Kept
from tests.support.commands import TARGETS
from tests.support.interpreter import interpreted


def every_route() -> None:
    """Clauses pass on cases whose rows are multiples of 16 bytes: the single kernel requires this."""
    from optimized import kernels

    taken: set[tuple[bool, bool]] = set()
    joined = kernels.linear_expand

    def watched(*operands: Any, kept: Kept | None) -> torch.Tensor:
        taken.add((operands[1].stride(1) == 1, kept is not None))
        return joined(*operands, kept=kept)

    clauses, judged = load_all(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "linear_expand", watched)
        patch.setattr(sys, "path", [str(TARGETS), *sys.path])
        target = Target.load("routed", "cpu")
        for name in ("LAY-FWD", "LAY-BWD-DX", "LAY-DROP-POST"):
            clause = clauses[name]
            (subject,) = (s for s in target.subjects(clause) if s.name == "TritonLinearLoRA")
            for index in range(CASES):
                case = Examination(clause, subject, "bfloat16", PROFILES["quick"]).case(index)
                whole = {"k": -(-case.k // 8) * 8, "n": -(-case.n // 8) * 8, "x": "packed", "w": "packed"}
                case = dataclasses.replace(case, **whole, special="none", adapter="same")
                with contextlib.suppress(Inconclusive):
                    check_case(clause, subject, case)
                    judged += 1
    assert judged > CASES, judged
    assert taken == {(True, False), (False, False), (True, True)}, "forward, backward and masked are not all there"


CASES = 5
# With two programs and blocks of at most 64, the first shape has several tiles per program and tails of M, N, K, R.
# The second has nine tiles of M, so the last group of tiles is narrow.
SHAPES = ((72, 72, 72, 17), (520, 72, 8, 1), (5, 8, 8, 1))


def one_kernel() -> None:
    """The single kernel's y is right in each layout of W, with and without a bias."""
    torch.manual_seed(0)
    dtypes = (torch.bfloat16, torch.float16)
    for (M, N, K, R), dtype, swapped in itertools.product(SHAPES, dtypes, (False, True)):
        if M > 500 and swapped == (dtype == torch.bfloat16):
            continue
        x, bias, b = torch.randn(M, K).to(dtype), torch.randn(2 * N).to(dtype)[::2], torch.randn(N, R).to(dtype)
        w = torch.randn(K, N).to(dtype).t() if swapped else torch.randn(N, K).to(dtype)
        s = torch.randint(-8, 9, (M, R)).float()  # so that scale · S is exact in 16 bits
        for added in (None, bias)[: 1 if M > 500 else 2]:
            compare_with_sums(x, w, added, s, b)


def compare_with_sums(
    x: torch.Tensor, w: torch.Tensor, added: torch.Tensor | None, s: torch.Tensor, b: torch.Tensor
) -> None:
    """The kernel's y differs from the exact sum by at most one rounding and the error of float32 sums."""
    from optimized import kernels

    wide_x, wide_w, wide_b = x.double(), w.double(), b.double()
    exact = wide_x @ wide_w.t() + 0.5 * s.double() @ wide_b.t()
    size = wide_x.abs() @ wide_w.abs().t() + 0.5 * s.double().abs() @ wide_b.abs().t()
    y = kernels.linear_expand(x, w, added, s, b, 0.5).double()
    want = exact if added is None else exact + added.double()
    off = (y - want).abs() - torch.finfo(x.dtype).eps / 2 * want.abs() - 2.0**-19 * (size + 4)
    assert (off <= 0).all(), (x.dtype, x.shape, w.shape, w.stride(), added is None, off.max())


def test_the_single_kernel_conforms_in_forward_backward_and_masked() -> None:
    interpreted(every_route)


def test_one_kernel_computes_the_base_product_and_the_update() -> None:
    interpreted(one_kernel)


@pytest.mark.parametrize("clause", ["LIN-FWD", "LIN-BWD-DX", "LIN-FWD-OVERFLOW", "LIN-FWD-NONFINITE"])
def test_computing_the_update_first_conforms_too(clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(matrices, "update_first", lambda _, bias: asked.append(1) or bias is None)
    monkeypatch.setattr(linear, "plain_apply", linear.same_dtype_apply)  # plain_apply never calls update_first
    target, found = Target.load("optimized", "cpu"), load_all()[clause]
    (subject,) = (s for s in target.subjects(found) if s.name == "lora_linear")
    for dtype in ("float32", "bfloat16", "float16"):
        result = Examination(found, subject, dtype, PROFILES["quick"]).run()
        assert result.status == "pass", (dtype, result.message)
    assert asked


def test_the_update_comes_first_on_a_gpu_without_a_bias() -> None:
    assert not matrices.update_first(torch.ones(2, 2), None)
    on_gpu = SimpleNamespace(is_cuda=True)
    assert matrices.update_first(on_gpu, None)
    assert not matrices.update_first(on_gpu, torch.ones(2))


@pytest.mark.parametrize(
    ("x", "weight", "reason"),
    [
        (torch.ones(4, 8), torch.ones(16, 8), "products of torch.float32"),
        (torch.ones(4, 7).bfloat16(), torch.ones(16, 7).bfloat16(), r"x, [4, 7] of strides [7, 1], has no tensor"),
        (torch.ones(0, 8).bfloat16(), torch.ones(16, 8).bfloat16(), "x, [0, 8]"),
        (torch.ones(8, 4).bfloat16().t(), torch.ones(16, 8).bfloat16(), "x, [4, 8] of strides [1, 4]"),
        (torch.ones(1, 8).bfloat16().expand(4, 8), torch.ones(16, 8).bfloat16(), "x, [4, 8] of strides [0, 1]"),
        (torch.ones(4, 8).bfloat16(), torch.ones(15, 8).bfloat16(), "rows of y, 15 elements"),
        (torch.ones(4, 9).bfloat16()[:, 1:], torch.ones(16, 8).bfloat16(), "x, [4, 8] of strides [9, 1]"),
        (torch.ones(4, 8).half(), torch.ones(16, 8).half(), "may overflow in float16"),
        (torch.ones(4, 8).bfloat16(), torch.ones(16, 8).bfloat16(), "interpreted kernels are not faster"),
    ],
)
def test_one_kernel_is_refused_with_a_reason(x: torch.Tensor, weight: torch.Tensor, reason: str) -> None:
    assert reason in (why_not_one_kernel(x, weight, 4) or "")
    wanted = why_not_one_kernel(x, weight, 4, wanted=True)
    assert wanted is None if reason.startswith("interpreted") else wanted is not None and reason in wanted


@pytest.mark.parametrize(
    ("elements", "dtype", "rank", "reason"),
    [
        (CACHED_BYTES, torch.bfloat16, 16, None),
        (CACHED_BYTES // 2, torch.bfloat16, 16, "g, 16777216 bytes, is in the cache"),
        (CACHED_BYTES, torch.bfloat16, 33, "at rank 33"),
        (CACHED_BYTES, torch.float32, 16, "products in torch.float32"),
    ],
)
def test_kernels_run_where_they_save_memory_reads(
    elements: int, dtype: torch.dtype, rank: int, reason: str | None
) -> None:
    x = torch.empty(elements // 64, 8, 8, dtype=dtype, device="meta")
    found = why_not_kernels(x, torch.empty(8, 8, dtype=dtype, device="meta"), rank)
    assert found is None if reason is None else found is not None and reason in found
    assert why_not_kernels(torch.ones(1, 8), torch.ones(8, 8), rank) is None


@pytest.mark.parametrize("wanted", [False, True])
def test_the_single_read_kernel_is_refused_for_float32_and_wide_rank(wanted: bool) -> None:
    g = torch.empty(CACHED_BYTES, 1, dtype=torch.bfloat16, device="meta")
    assert "products in torch.float32" in (why_not_one_reading(g, 16, torch.float32, wanted) or "")
    assert why_not_one_reading(g, 16, torch.bfloat16, wanted) is None
    assert "at rank 33" in (why_not_one_reading(g, 33, torch.bfloat16, wanted) or "")
