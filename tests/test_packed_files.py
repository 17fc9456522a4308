"""Adapters that were trained on one base, packed or float, load onto every other, and onto those of PEFT."""

from __future__ import annotations

import importlib.util

import pytest

from tests.support.packed_files import exchanges

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and bitsandbytes warn at import and about the environment
ROUNDING = 1e-5  # of a float32 result; most are some 1e-7


@pytest.mark.parametrize("source", ["optimized nf4", "reference float", "peft nf4"])
def test_an_adapter_loads_onto_every_base(source: str) -> None:
    if source == "peft nf4":
        pytest.importorskip("peft")
        pytest.importorskip("bitsandbytes")
    found = list(exchanges((source,)))
    assert {one.source for one in found} == {source}
    expected = {"reference float", "reference nf4", "optimized nf4"}
    if importlib.util.find_spec("peft"):
        expected |= {"peft float", "peft nf4"} if importlib.util.find_spec("bitsandbytes") else {"peft float"}
    assert {one.onto for one in found} == expected
    for one in found:
        assert one.difference <= ROUNDING, one
        assert one.effect > 1e3 * ROUNDING, one  # a file that is not loaded would show
        assert one.same_file, one
