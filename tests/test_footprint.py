"""Memory: the memory of a clause is measured, and a buffer with far rows uses almost none, even when it is read."""

from __future__ import annotations

from typing import Any

import torch

import reference
from conformance.clauses.linear_and_layer.global_state import ROW, _mostly_absent
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.support.footprint import memory, needed

GROWN = 64  # MiB allowed for unrelated buffers and caches


def test_only_the_rows_of_a_far_buffer_occupy_memory() -> None:
    before = memory("VmRSS"), memory("VmData")
    buffer = _mostly_absent(2 * ROW + 40, torch.float32, (0, ROW, 2 * ROW), 40)
    rows = buffer.as_strided((3, 40), (ROW, 1))
    rows.copy_(torch.arange(120.0).reshape(3, 40))
    assert rows.sum() == 119 * 60
    assert not buffer[2**20 : 2**27].any()  # half a GiB that is not allocated
    assert memory("VmRSS") - before[0] < GROWN
    assert memory("VmData") - before[1] < GROWN


class Hoards:
    """A target that allocates a quarter of a GiB for a moment."""

    def lora_linear(self, *operands: Any) -> torch.Tensor:
        return reference.lora_linear(*operands) + torch.ones(2**26)[0] - 1


def test_the_memory_that_a_clause_needs_is_measured_and_limited() -> None:
    clause = load_all()["LIN-FWD-ZERO"]
    frugal, hoards = (needed(clause, Target.of(target)) for target in (reference, Hoards()))
    assert frugal is not None
    assert hoards is not None
    assert hoards[0] - frugal[0] > 200
    assert frugal[1] == []
    limited = needed(clause, Target.of(Hoards()), memory("VmData") + 200)
    assert limited is not None
    assert "DefaultCPUAllocator: can't allocate memory" in limited[1][0]
