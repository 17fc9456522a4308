"""SPEC.md: generated from the clauses, up to date, and readable without importing them."""

from __future__ import annotations

import importlib
import re
from types import ModuleType, SimpleNamespace

import pytest

from conformance.report import terminal
from conformance.specification import spec_page
from conformance.specification.clause import GROUPS, REGISTRY, checks_of, load_all

load_all()


def test_spec_is_up_to_date() -> None:
    assert spec_page.PATH.read_text(encoding="utf-8") == spec_page.document(REGISTRY.values()), "run `loraspec spec`"


def test_what_is_written_is_read_back() -> None:
    entries = spec_page.read(spec_page.document(REGISTRY.values()))
    assert entries == {clause.id: spec_page.entry_of(clause) for clause in REGISTRY.values()}


def test_ids_are_stable_words_and_sentences_are_sentences() -> None:
    for clause in REGISTRY.values():
        assert re.fullmatch(r"[A-Z]+(-[A-Z0-9]+)+", clause.id)
        assert clause.group in GROUPS
        assert clause.sentence.endswith("."), clause.id


def test_every_clause_has_a_test_that_pytest_finds() -> None:
    modules = [importlib.import_module(f"conformance.test_{group}") for group in GROUPS]
    found = [value.clause.id for module in modules for value in vars(module).values() if hasattr(value, "clause")]
    assert sorted(found) == sorted(REGISTRY)


def test_two_checks_of_one_name_are_an_error() -> None:
    one, other = ModuleType("one"), ModuleType("other")
    vars(one)["test_it"] = SimpleNamespace(clause=REGISTRY["LIN-FWD"])
    vars(other)["test_it"] = SimpleNamespace(clause=REGISTRY["LAY-FWD"])
    with pytest.raises(ValueError, match="LAY-FWD and LIN-FWD both have a test test_it"):
        checks_of(one, other)


def test_a_row_that_is_no_clause_is_an_error() -> None:
    with pytest.raises(ValueError, match="is no clause: expected six cells"):
        spec_page.read("## linear\n\n| id |\n| --- |\n| LIN-FWD | MAY | y | all |  |  |\n")


def test_an_explanation_has_sentence_dtypes_cases_and_what_kills_it() -> None:
    entry = spec_page.read()["LIN-FWD"]
    text = "\n".join(terminal.explanation(entry))
    assert REGISTRY["LIN-FWD"].sentence in text
    assert "float64, float32, bfloat16, float16" in text
    assert "            scale=" in text
