"""SPEC.md: generated from the clauses, up to date, and readable without importing them."""

from __future__ import annotations

import importlib
import re

import pytest

from conformance.cases.linear_case import LINEAR
from conformance.report import terminal
from conformance.specification import spec_page
from conformance.specification.clause import REGISTRY, load_all
from conformance.specification.clause import clause as declare
from conformance.specification.groups import FOLDER, groups

CLAUSES = load_all()


def test_spec_is_up_to_date() -> None:
    assert spec_page.PATH.read_text(encoding="utf-8") == spec_page.document(CLAUSES.values()), "run `loraspec spec`"


def test_what_is_written_is_read_back() -> None:
    entries = spec_page.read(spec_page.document(CLAUSES.values()))
    assert entries == {clause.id: spec_page.entry_of(clause) for clause in REGISTRY.values()}


def test_ids_are_stable_words_and_sentences_are_sentences() -> None:
    for clause in REGISTRY.values():
        assert re.fullmatch(r"[A-Z]+(-[A-Z0-9]+)+", clause.id)
        assert clause.group in groups()
        assert clause.sentence.endswith("."), clause.id


def test_every_clause_has_a_test_that_pytest_finds() -> None:
    modules = [importlib.import_module(name) for name in {clause.source for clause in CLAUSES.values()}]
    tests = [test for module in modules for name, test in vars(module).items() if name.startswith("test_")]
    assert sorted(clause.id for test in tests for clause in test.clauses) == sorted(REGISTRY)


def test_every_id_is_a_literal_that_stands_once() -> None:
    for clause in CLAUSES.values():
        literal, places = f'"{clause.id}"', []
        for path in FOLDER.rglob("*.py"):
            places += [path] * path.read_text(encoding="utf-8").count(literal)
        expected = FOLDER.parents[1] / (clause.source.replace(".", "/") + ".py")
        assert places == [expected], f"{clause.id} stands in {len(places)} places: expected one, in {expected}"


def test_an_unknown_prefix_or_a_second_home_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(subject: object, case: object) -> None: ...

    with pytest.raises(ValueError, match="clause ABC-FWD has the prefix 'ABC': expected one of LIN, LAY"):
        declare("ABC-FWD", sentence="A sentence.", cases=LINEAR)(check)
    monkeypatch.setattr(check, "__module__", "elsewhere")
    with pytest.raises(ValueError, match=r"LIN-FWD is declared in conformance\.clauses\.\S+ and again in elsewhere"):
        declare("LIN-FWD", sentence="A sentence.", cases=LINEAR)(check)
    assert "ABC-FWD" not in REGISTRY


def test_a_row_that_is_no_clause_is_an_error() -> None:
    with pytest.raises(ValueError, match="is not a clause: expected 7 cells"):
        spec_page.read("## linear\n\n| id |\n| --- |\n| LIN-FWD | MAY | y | all |  |  |\n")


def test_an_explanation_has_sentence_dtypes_cases_and_what_kills_it() -> None:
    entry = spec_page.read()["LIN-FWD"]
    text = "\n".join(terminal.explanation(entry))
    assert REGISTRY["LIN-FWD"].sentence in text
    assert "float64, float32, bfloat16, float16" in text
    assert "            scale=" in text
    assert "checked in conformance/clauses/linear_and_layer/forward.py:" in text
    assert "            tests/known_bad/" in text
