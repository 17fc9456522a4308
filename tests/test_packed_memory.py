"""The table of memory between the passes: right layers keep nothing of W's size, and each way sees its keeper."""

from __future__ import annotations

from typing import Any

import pytest

import optimized
import reference
from tests.baselines.quantised import target_of
from tests.support import packed_memory
from tests.support.packed_memory import KEEPERS

SIZE = 256
LEAST = SIZE * SIZE // 2  # half a byte for each element of W


@pytest.mark.parametrize("target", [reference, optimized])
def test_a_right_layer_keeps_nothing_of_the_weights_size(target: Any) -> None:
    found = packed_memory.kept(target, SIZE)
    assert max(found.saved, found.reached, found.resident) < LEAST
    assert found.saved >= 4 * packed_memory.ROWS * packed_memory.RANK  # x Aᵀ
    assert found.storage == SIZE * SIZE // 2 + SIZE * SIZE // 64 * 4


@pytest.mark.parametrize(("name", "way"), [*zip(KEEPERS, ("saved", "reached", "resident"), strict=True)])
def test_each_way_sees_a_layer_that_the_ways_before_miss(name: str, way: str) -> None:
    found = packed_memory.kept(target_of(KEEPERS[name])(), SIZE)
    assert getattr(found, way) >= 4 * SIZE * SIZE
    assert found.resident >= 4 * SIZE * SIZE  # memory counts whatever keeps it
    assert [found.saved >= LEAST, found.reached >= LEAST] == [way == "saved", way == "reached"]
