"""The routes of the Triton layer: one persistent kernel conforms where it can run, and rules say why it does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from conformance.clause import load_all
from conformance.examine import Examination
from conformance.profiles import PROFILES
from conformance.target import Target
from optimized import linear, matrices
from optimized.routes import (
    CACHED_BYTES,
    why_not_kernels,
    why_not_one_kernel,
    why_not_one_reading,
)
from tests.commands import python

# Cases whose rows are whole pieces of 16 bytes, without which the one kernel does not run.
CONFORMING = """
import dataclasses
from conformance.clause import load_all
from conformance.examine import Examination, check_case
from conformance.judge import Inconclusive
from conformance.profiles import PROFILES
from conformance.target import Target
import optimized.kernels as kernels

taken, joined = [], kernels.joined

def watched(*operands, kept):
    taken.append((operands[1].stride(1) == 1, kept is not None))
    return joined(*operands, kept=kept)

kernels.joined = watched
target, clauses, judged = Target.load("routed", "cpu"), load_all(), 0
for name in ("LAY-FWD", "LAY-BWD-DX", "LAY-DROP-POST"):
    (subject,) = (s for s in target.subjects(clauses[name]) if s.name == "TritonLinearLoRA")
    for dtype in ("bfloat16",):
        for index in range(8):
            case = Examination(clauses[name], subject, dtype, PROFILES["quick"])._case(index)
            whole = {"k": -(-case.k // 8) * 8, "n": -(-case.n // 8) * 8, "x": "packed", "w": "packed"}
            try:
                check_case(clauses[name], subject, dataclasses.replace(case, **whole, special="none", adapter="same"))
                judged += 1
            except Inconclusive:
                pass
assert judged > 8, judged
assert {*taken} == {(True, False), (False, False), (True, True)}, "forward, backward and masked are not all there"
print("conforms")
"""
# Two programs and blocks of at most 64: several tiles each, with tails of M, N, K and R, and the last group narrow.
KERNEL = """
import torch
from optimized import kernels

torch.manual_seed(0)
for dtype in (torch.bfloat16, torch.float16):
    unit = torch.finfo(dtype).eps / 2
    for M, N, K, R in ((600, 72, 136, 17), (5, 8, 8, 1), (64, 200, 64, 16)):
        for swapped in (False, True):
            x, bias, b = torch.randn(M, K).to(dtype), torch.randn(2 * N).to(dtype)[::2], torch.randn(N, R).to(dtype)
            w = torch.randn(K, N).to(dtype).t() if swapped else torch.randn(N, K).to(dtype)
            s = torch.randint(-8, 9, (M, R)).float()  # scale · S is exact in 16 bits
            wide_x, wide_w, wide_b = x.double(), w.double(), b.double()
            exact = wide_x @ wide_w.t() + 0.5 * s.double() @ wide_b.t()
            size = wide_x.abs() @ wide_w.abs().t() + 0.5 * s.double().abs() @ wide_b.abs().t()
            for added in (None, bias):
                y = kernels.joined(x, w, added, s, b, 0.5).double()
                want = exact if added is None else exact + bias.double()
                off = (y - want).abs() - unit * want.abs() - 2.0**-19 * (size + 4)
                assert (off <= 0).all(), (dtype, M, N, K, R, swapped, added is None, off.max())
print("compared")
"""


def test_all_routes_conform() -> None:
    ended = python("-c", CONFORMING, TRITON_INTERPRET="1")
    assert ended.returncode == 0, ended.stderr
    assert "conforms" in ended.stdout


def test_one_kernel_gives_the_large_product_and_the_update() -> None:
    ended = python("-c", KERNEL, TRITON_INTERPRET="1")
    assert ended.returncode == 0, ended.stderr
    assert "compared" in ended.stdout


@pytest.mark.parametrize("clause", ["LIN-FWD", "LIN-BWD-DX", "LIN-FWD-OVERFLOW", "LIN-FWD-NONFINITE"])
def test_the_update_first_conforms_too(clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(matrices, "update_first", lambda _, bias: asked.append(1) or bias is None)
    monkeypatch.setattr(linear, "plain_apply", linear._apply)  # which never asks
    target, found = Target.load("optimized", "cpu"), load_all()[clause]
    (subject,) = (s for s in target.subjects(found) if s.name == "lora_linear")
    for dtype in ("float32", "bfloat16", "float16"):
        result = Examination(found, subject, dtype, PROFILES["quick"]).run()
        assert result.status == "pass", (dtype, result.message)
    assert asked


def test_the_update_goes_first_on_a_gpu_unless_there_is_a_bias() -> None:
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
        (torch.ones(4, 8).half(), torch.ones(16, 8).half(), "may have no room in float16"),
        (torch.ones(4, 8).bfloat16(), torch.ones(16, 8).bfloat16(), "interpreted, nothing is faster"),
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
def test_kernels_run_where_they_save_readings(elements: int, dtype: torch.dtype, rank: int, reason: str | None) -> None:
    x = torch.empty(elements // 64, 8, 8, dtype=dtype, device="meta")
    found = why_not_kernels(x, torch.empty(8, 8, dtype=dtype, device="meta"), rank)
    assert found is None if reason is None else found is not None and reason in found
    assert why_not_kernels(torch.ones(1, 8), torch.ones(8, 8), rank) is None


@pytest.mark.parametrize("wanted", [False, True])
def test_one_reading_has_no_room_for_wide_products_whoever_wants_it(wanted: bool) -> None:
    g = torch.empty(CACHED_BYTES, 1, dtype=torch.bfloat16, device="meta")
    assert "products in torch.float32" in (why_not_one_reading(g, 16, torch.float32, wanted) or "")
    assert why_not_one_reading(g, 16, torch.bfloat16, wanted) is None
    assert "at rank 33" in (why_not_one_reading(g, 33, torch.bfloat16, wanted) or "")
