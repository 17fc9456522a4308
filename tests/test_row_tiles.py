"""The kernels over tiles of rows: their table, the clauses that they pass interpreted, and the reasons against them."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch

import optimized
from conformance.judgement.outcomes import Inconclusive
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.check_case import check_case
from conformance.target.target import Target
from optimized.dispatch.row_tiles import MOST_TILED_RANK, tiles_wanted, why_not_tiled
from optimized.row_tiles import RowTiles
from tests.support.commands import TARGETS
from tests.support.interpreter import interpreted

CLAUSES = {
    "EXP-FWD": "float32",
    "EXP-BWD-DX": "bfloat16",
    "EXP-BWD-DA": "float32",
    "EXP-BWD-DB": "float16",
    "BAT-FWD": "bfloat16",
    "BAT-BWD-DX": "float32",
    "BAT-BWD-DA": "float16",
    "BAT-BWD-DB": "float32",
    "BAT-FWD-PADDING": "float32",
}
CASES = 4


def clauses_pass() -> None:
    """Clauses of both groups pass on a few cases each, and each case runs a kernel."""
    from optimized import kernels

    launched: list[int] = []
    forward = kernels.grouped_lora_linear

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "grouped_lora_linear", lambda *a, **k: launched.append(1) or forward(*a, **k))
        patch.setattr(sys, "path", [str(TARGETS), *sys.path])
        target = Target.load("tiled", "cpu")
        for name, dtype in CLAUSES.items():
            clause, before = load_all()[name], len(launched)
            subject = target.subjects(clause)[0]
            examined = Examination(clause, subject, dtype, PROFILES["quick"])
            for index in range(CASES):
                with contextlib.suppress(Inconclusive):
                    check_case(clause, subject, examined.case(index))
            assert len(launched) > before, name


def several_tiles() -> None:
    """Rows of one group fill several tiles, with a tail; a second group is idle, and some rows have none."""
    torch.manual_seed(0)
    index = torch.tensor([0] * 70 + [2] * 3 + [-1, 3, 9])[torch.randperm(76)]
    x, W, A, B = (torch.randn(*shape, dtype=torch.float64) for shape in ((76, 5), (3, 130, 5), (3, 2, 5), (3, 130, 2)))
    own = index.clamp(0, 2)
    want = torch.einsum("mk,mnk->mn", x, W[own]) + 2 * torch.einsum("mk,mrk,mnr->mn", x, A[own], B[own])
    want[(index < 0) | (index > 2)] = 0
    x[(index < 0) | (index > 2)] = torch.nan
    with tiles_wanted():
        y = optimized.lora_grouped_linear(x, index, W, None, A, B, 2.0)
    torch.testing.assert_close(y, want)


def rows_without_features() -> None:
    """Sorted rows with K = 0 get the bias of their expert, and a row past the last expert zero."""
    x, A, B = torch.ones(3, 0), torch.ones(2, 1, 0), torch.ones(2, 5, 1)
    bias = torch.arange(10.0).reshape(2, 5)
    with tiles_wanted():
        offsets = torch.tensor([1, 2], dtype=torch.int32)
        y = optimized.lora_grouped_linear_sorted(x, offsets, torch.ones(2, 5, 0), bias, A, B, 2.0)
    torch.testing.assert_close(y, torch.cat([bias, torch.zeros(1, 5)]))


def test_clauses_of_both_groups_pass() -> None:
    interpreted(clauses_pass)


def test_a_group_may_fill_several_tiles() -> None:
    interpreted(several_tiles)


def test_rows_may_have_no_features() -> None:
    interpreted(rows_without_features)


def test_the_table_has_each_row_once() -> None:
    tiles = RowTiles.of_index(torch.tensor([2, 0, -1, 2, 2, 7, 0]), 4, 2)
    assert tiles.order.tolist() == [1, 6, 0, 3, 4, 2, 5]
    assert tiles.ends.tolist() == [2, 2, 5, 5, 7]
    used = tiles.groups <= 4
    assert tiles.groups[used].tolist() == [0, 2, 2, 4]
    assert tiles.firsts[used].tolist() == [0, 2, 4, 5]
    again = RowTiles.of_offsets(torch.tensor([2, 2, 5, 5], dtype=torch.int32), 7, 2)
    assert again.order.tolist() == list(range(7))
    assert torch.equal(again.groups, tiles.groups)
    assert torch.equal(again.firsts, tiles.firsts)


def test_an_empty_batch_has_a_table() -> None:
    assert RowTiles.of_index(torch.zeros(0, dtype=torch.int64), 2, 16).groups.tolist() == [3, 3, 3]


def test_reasons_against_the_kernels() -> None:
    def reason(rank: int = 2, dtype: torch.dtype = torch.float32) -> str:
        A, B = torch.ones(3, rank, 4, dtype=dtype), torch.ones(3, 5, rank, dtype=dtype)
        return why_not_tiled(torch.ones(2, 4), torch.ones(3, 5, 4), None, A, B) or ""

    assert reason() == "interpreted kernels are not faster"
    with tiles_wanted():
        assert reason(0) == f"a tile covers the whole rank, of 1 to {MOST_TILED_RANK}, and this is 0"
        assert "this is 33" in reason(MOST_TILED_RANK + 1)
        assert reason(dtype=torch.float64) == "the kernels multiply operands of one dtype"
        with torch.autocast("cpu", torch.bfloat16):
            assert reason() == "autocast chooses the dtype of each product"
