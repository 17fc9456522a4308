"""TARGETS.md: its code and commands run in order and print the page's output, and its table agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from conformance.specification.clause import load_all
from conformance.specification.groups import groups
from conformance.target import targets_page
from tests.support.page_reader import BLOCK, Reader

PAGE = targets_page.PATH.read_text(encoding="utf-8")
ACTION = targets_page.ROOT / "ci" / "action" / "action.yml"


@pytest.mark.long
def test_what_the_page_says_happens(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    done = []
    try:
        for kind, name, text in BLOCK.findall(PAGE):
            if kind == "console":
                reader.console(text)
            elif kind == "diff":
                reader.change(name, text)
            else:
                reader.write(name, text)
            done.append(kind)
    finally:
        if reader.loop is not None:
            reader.loop.stop()
    assert done.count("console") >= 5
    assert reader.status == 0


def test_the_page_has_five_steps_and_every_code_block_is_run() -> None:
    assert re.findall(r"(?m)^## (\d)\. ", PAGE) == list("12345")
    assert PAGE.count("```") == 2 * len(BLOCK.findall(PAGE))
    assert all(name for kind, name, _ in BLOCK.findall(PAGE) if kind != "console")


def test_the_pages_workflow_uses_the_actions_real_inputs() -> None:
    (text,) = (text for kind, _, text in BLOCK.findall(PAGE) if kind == "yaml")
    steps = yaml.safe_load(text)["jobs"]["conformance"]["steps"]
    action = yaml.safe_load(ACTION.read_text())
    (step,) = (step for step in steps if "/ci/action@" in step["uses"])
    required = {name for name, about in action["inputs"].items() if about.get("required")}
    assert required <= set(step["with"]) <= set(action["inputs"])


def test_the_contract_table_agrees_with_the_code() -> None:
    assert targets_page.page(PAGE, load_all().values()) == PAGE, "run `loraspec spec`"
    readme = targets_page.README.read_text(encoding="utf-8")
    assert targets_page.readme(readme) == readme, "run `loraspec spec`"
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in PAGE.splitlines()]
    named = [row for row in rows if len(row) == 5 and row[2] in ("required", "optional")]
    assert [row[0].strip("`") for row in named if row[0]] == list(groups())
    assert all(re.match(r"\w.* \(\d+ clauses\)$", row[4]) for row in named if row[0])
    required = [row[1].strip("`") for row in named if row[2] == "required"]
    assert required == [name for group in groups().values() for name in group.required]


def test_a_page_without_the_contract_marker_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"TARGETS\.md has no <!-- contract"):
        targets_page.page("# Targets\n", [])
    with pytest.raises(ValueError, match=r"README\.md has no <!-- contract"):
        targets_page.readme("# loraspec\n")
