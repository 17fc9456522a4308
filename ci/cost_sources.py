"""The time of steps, trials, tests and twins, read from the files of a run of the gate, pytest or `loraspec`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from conformance.report.report import Report

TWINS = "tests/test_known_bad.py"
CLAUSES = "conformance/clauses/"
KINDS = ("steps", "groups", "files", "trials", "tests", "twins")


@dataclass
class Cost:
    """CPU seconds, including child processes, and wall-clock seconds."""

    cpu: float = 0.0
    wall: float = 0.0

    def add(self, other: Cost) -> None:
        """Add another cost."""
        self.cpu += other.cpu
        self.wall += other.wall


@dataclass
class Costs:
    """Costs by kind and name: steps of the gate, groups of clauses, test files, trials, other tests, and twins."""

    kinds: dict[str, dict[str, Cost]] = field(default_factory=lambda: {kind: defaultdict(Cost) for kind in KINDS})

    def add(self, kind: str, name: str, cost: Cost) -> None:
        """Add to the cost of one name of a kind."""
        self.kinds[kind][name].add(cost)

    def add_test(self, nodeid: str, cost: Cost) -> None:
        """Add the cost of a pytest test to its kinds: as a trial of a clause, a test of a twin, or another test."""
        path, _, test = nodeid.partition("::")
        label = test.partition("[")[2].removesuffix("]")
        if path.startswith(CLAUSES):
            self.add("groups", path.removeprefix(CLAUSES).partition("/")[0], cost)
            self.add("trials", label or test, cost)
            return
        self.add("files", path, cost)
        if path == TWINS and label:
            self.add("twins", label, cost)
        else:
            self.add("tests", nodeid, cost)


def read(sources: list[Path]) -> Costs:
    """The costs in these sources: folders of the gate, reports (report.json) and pytest results (junit.xml).

    Raises:
        ValueError: naming a source without costs.
    """
    found = Costs()
    for source in sources:
        files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
        if source.is_dir() and not files:
            files = [file for file in (source / "report.json", source / "junit.xml") if file.exists()][:1]
        if not files:
            raise ValueError(f"{source} has no *.jsonl, report.json or junit.xml: expected a folder that has")
        for file in files:
            _read(file, found)
    return found


def _read(file: Path, found: Costs) -> None:
    if file.suffix == ".xml":
        for nodeid, seconds in _cases(file):
            found.add_test(nodeid, Cost(seconds, seconds))
    elif file.suffix == ".jsonl":
        for line in file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            cost = Cost(entry["cpu"], entry["wall"])
            if "step" in entry:
                found.add("steps", entry["step"], cost)
            else:
                found.add_test(entry["test"], cost)
    else:
        _read_report(Report.from_json(json.loads(file.read_text(encoding="utf-8"))), found)


def _read_report(report: Report, found: Costs) -> None:
    """The trials of a report: seconds of one process that has one thread."""
    for clause in report.clauses:
        for result in clause.results:
            if result.seconds is None:
                raise ValueError(f"the report on {report.target} has no times: expected the one that a run wrote")
            cost = Cost(result.seconds, result.seconds)
            found.add("groups", clause.group, cost)
            found.add("trials", "-".join((clause.id, result.subject, result.dtype)), cost)


def _cases(file: Path) -> Iterator[tuple[str, float]]:
    """The tests of a junit.xml by pytest's names, with their wall-clock seconds."""
    for case in ET.parse(file).iter("testcase"):
        path, name = case.get("classname", "").replace(".", "/"), case.get("name", "")
        yield f"{path}.py::{name}", float(case.get("time", 0))
