"""TARGETS.md: its code and commands are run in order, what they print is compared, and its table is the code's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conformance.specification.clause import load_all
from conformance.specification.groups import groups
from conformance.target import targets_page
from tests.support.commands import PATIENCE
from tests.support.watch_loop import Loop

PAGE = targets_page.PATH.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ACTION = targets_page.ROOT / "ci" / "action" / "action.yml"


class Reader:
    """Someone who does in a folder what the page says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.status = folder, 0
        self.loop: Loop | None = None

    def console(self, text: str) -> None:
        """Run each command, and compare; a block without one goes on with the loop that an earlier one started."""
        before, *commands = re.split(r"(?m)^\$ ", text)
        if before:
            assert self.loop is not None
            judged, _, ended = before.partition("^C\n")
            compare("".join(self.loop.verdict()), judged)
            self.status = self.loop.interrupt()
            self.loop.stop()
            compare("".join(self.loop.rest()), ended)
        for command, _, expected in (words.partition("\n") for words in commands):
            if "--watch-clause" in command:
                target, clause = re.findall(r"run (\w+) --watch-clause ([A-Z-]+)$", command)[0]
                self.loop = Loop(self.folder, target, clause)
                compare("".join(self.loop.verdict()), expected)
            else:
                compare(self.run(command), expected)

    def run(self, command: str) -> str:
        """What a command prints; its exit code is the next one's `$?`."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ended = subprocess.run(
            ["bash", "-c", f"(exit {self.status}); {command}"],
            cwd=self.folder,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.status = ended.returncode
        return ended.stdout

    def write(self, name: str, text: str) -> None:
        """A new file."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def change(self, name: str, diff: str) -> None:
        """A change to a file, at the one place that fits."""
        old, new = ("".join(f"{line[1:]}\n" for line in diff.splitlines() if line[0] in f" {s}") for s in "-+")
        text = (self.folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} has not one place for\n{diff}"
        self.write(name, text.replace(old, new))


def compare(said: str, expected: str) -> None:
    """`…` in a line stands for anything, and as a line for any lines; blanks at the end of a line do not count."""
    lines = [".*".join(map(re.escape, line.split("…"))) for line in expected.splitlines()]
    pattern = "".join(r"(?:.*\n)*" if line == ".*" else f"{line}\n" for line in lines)
    clean = "".join(f"{line.rstrip()}\n" for line in said.splitlines())
    assert re.fullmatch(pattern, clean), f"{said}\n--- is not\n{expected}"


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


def test_the_page_has_five_steps_and_every_fence_is_run() -> None:
    assert re.findall(r"(?m)^## (\d)\. ", PAGE) == list("12345")
    assert PAGE.count("```") == 2 * len(BLOCK.findall(PAGE))
    assert all(name for kind, name, _ in BLOCK.findall(PAGE) if kind != "console")


def test_the_workflow_on_the_page_uses_the_action_as_it_is() -> None:
    (text,) = (text for kind, _, text in BLOCK.findall(PAGE) if kind == "yaml")
    steps = yaml.safe_load(text)["jobs"]["conformance"]["steps"]
    action = yaml.safe_load(ACTION.read_text())
    (step,) = (step for step in steps if "/ci/action@" in step["uses"])
    required = {name for name, about in action["inputs"].items() if about.get("required")}
    assert required <= set(step["with"]) <= set(action["inputs"])


def test_the_contract_is_the_codes() -> None:
    assert targets_page.page(PAGE, load_all().values()) == PAGE, "run `loraspec spec`"
    readme = targets_page.README.read_text(encoding="utf-8")
    assert targets_page.readme(readme) == readme, "run `loraspec spec`"
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in PAGE.splitlines()]
    named = [row for row in rows if len(row) == 5 and row[2] in ("required", "optional")]
    assert [row[0].strip("`") for row in named if row[0]] == list(groups())
    assert all(re.match(r"\w.* \(\d+ clauses\)$", row[4]) for row in named if row[0])
    required = [row[1].strip("`") for row in named if row[2] == "required"]
    assert required == [name for group in groups().values() for name in group.required]


def test_a_page_without_a_place_for_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"TARGETS\.md has no <!-- contract"):
        targets_page.page("# Targets\n", [])
    with pytest.raises(ValueError, match=r"README\.md has no <!-- contract"):
        targets_page.readme("# loraspec\n")
