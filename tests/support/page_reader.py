"""A reader that follows a page's instructions in a folder and compares the output of its commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.support import preloaded_process
from tests.support.commands import PATIENCE
from tests.support.watch_loop import Loop

BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


OPERATORS = re.compile(r"[$`();<>|&]")  # of a shell
# commands that import torch and the suite, by their first words: they run in forks of a process that has done so
SLOW = (("loraspec", "run"), ("loraspec", "adapters"), ("loraspec", "spec"), ("python", "-m"), ("pytest",))


class Reader:
    """A reader that follows a page's instructions in a folder.

    Attributes:
        project: the project whose suite runs, this one or a copy of it.
    """

    def __init__(self, folder: Path, project: Path = preloaded_process.ROOT, **environment: str) -> None:
        self.folder, self.project, self.status = folder, project, 0
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**inherited, "PATH": path, **environment}
        self.loop: Loop | None = None

    def console(self, text: str) -> None:
        """Run each command and compare its output; a block without a command continues an earlier watch loop."""
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
        """Run a command and return its output; its exit code becomes the next command's `$?`."""
        words = [] if OPERATORS.search(command) else shlex.split(command)
        if any(tuple(words[: len(first)]) == first for first in SLOW):
            ended = preloaded_process.command(
                words[0],
                tuple(words[1:]),
                self.folder,
                PATIENCE,
                project=self.project,
                environment=self.environment,
                merged=True,
            )
        else:
            ended = subprocess.run(
                ["bash", "-c", f"(exit {self.status}); {command}"],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        self.status = ended.returncode
        return ended.stdout

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def change(self, name: str, diff: str) -> None:
        """Apply a diff to a file at the only place that matches."""
        old, new = ("".join(f"{line[1:]}\n" for line in diff.splitlines() if line[0] in f" {s}") for s in "-+")
        text = (self.folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} does not have exactly one place for\n{diff}"
        self.write(name, text.replace(old, new))


def compare(said: str, expected: str) -> None:
    """Compare output with the expected text.

    `…` in a line matches any text; a line of `…` matches any lines. Trailing blanks are ignored.
    """
    lines = [".*".join(map(re.escape, line.split("…"))) for line in expected.splitlines()]
    pattern = "".join(r"(?:.*\n)*" if line == ".*" else f"{line}\n" for line in lines)
    clean = "".join(f"{line.rstrip()}\n" for line in said.splitlines())
    assert re.fullmatch(pattern, clean), f"{said}\n--- is not\n{expected}"
