"""The clauses that run each line of a package: only they can notice a defect there."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coverage

from conformance.judgement.result import ANY_DTYPE
from conformance.run.case_search import Examination
from conformance.run.profiles import Profile
from conformance.specification.clause import REGISTRY, Clause
from conformance.target.target import Target
from tests.campaigns.mutation import mutants
from tests.campaigns.mutation.mutants import Mutant

# The clauses of these groups run a target in other processes, whose lines are not seen here: `distributed` in all of
# them; `remote` has a server in another, so that what no client runs is a server's.
OTHER_PROCESSES = ("distributed", "remote")
Lines = dict[str, dict[int, set[str]]]  # file → line → ids of clauses


class Reach:
    """The clauses that run each line of one target's files, measured once and kept beside the journal.

    Args:
        folder: where the measurement is kept; its name contains a digest of all sources, so that an edit remakes it.
        slow: ids of the clauses that no mutant is judged by.   profile: the cases of each clause.
    """

    def __init__(self, folder: Path, slow: tuple[str, ...], profile: Profile) -> None:
        self._folder, self._slow, self._profile = folder, slow, profile
        self._lines: dict[tuple[str, ...], Lines] = {}
        self._digest = digest_of_sources()

    def clauses(self, mutant: Mutant, module: str, groups: tuple[str, ...], interpreting: str) -> list[Clause]:
        """The clauses of the groups that can notice an edit, group by group.

        Args:
            module: the target that runs the edited file.   interpreting: the value of TRITON_INTERPRET.

        A line that runs when its file is imported is every clause's that runs a line of the file; if no clause runs
        one, the file holds constants that others compute with, and all clauses of the groups are asked.
        """
        found: list[Clause] = []
        for group in groups:
            everything = clauses_of((group,), self._slow)
            lines = {} if group == "distributed" else self._measured(module, group, interpreting).get(mutant.file, {})
            chosen = lines.values() if mutant.imported else [lines.get(n, set()) for n in range(*mutant.lines)]
            ran = set().union(*chosen)
            own = [c for c in everything if c.id in ran]
            found += everything if group in OTHER_PROCESSES and not own else own
        if found or not mutant.imported:
            return found
        return clauses_of(groups, self._slow)

    def _measured(self, *key: str) -> Lines:
        if key not in self._lines:
            path = self._folder / f"{'-'.join(key)}-{self._digest}.json"
            read = measured_once(path, lambda: self._measure(*key))
            self._lines[key] = {f: {int(n): set(ids) for n, ids in by.items()} for f, by in read.items()}
        return self._lines[key]

    def _measure(self, module: str, group: str, interpreting: str) -> dict[str, dict[int, list[str]]]:
        os.environ["TRITON_INTERPRET"] = interpreting
        tracer = tracer_of_packages()
        for name in [n for n in sys.modules if n.partition(".")[0] in mutants.PACKAGES or n == module]:
            del sys.modules[name]
        tracer.start()
        target = Target.of(importlib.import_module(module))
        for clause in clauses_of((group,), self._slow):
            tracer.switch_context(clause.id)
            for subject, dtype in itertools.product(target.subjects(clause), clause.dtypes or (ANY_DTYPE,)):
                Examination(clause, subject, dtype, self._profile).run()
        tracer.stop()
        return contexts_by_line(tracer)


def measured_once(path: Path, measure: Callable[[], Any]) -> Any:
    """Return what a JSON file holds; a fork of this process measures and writes it if it is missing.

    Raises:
        RuntimeError: if the fork fails.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                part = path.with_suffix(f".{os.getpid()}")
                part.write_text(json.dumps(measure()), encoding="utf-8")
                part.rename(path)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError(f"the lines for {path.name} could not be measured")
    return json.loads(path.read_text(encoding="utf-8"))


def tracer_of_packages() -> coverage.Coverage:
    """A tracer of the lines of the packages that mutants edit."""
    sources = [str(mutants.ROOT / package) for package in mutants.PACKAGES]
    return coverage.Coverage(source=sources, data_file=None, config_file=False)


def contexts_by_line(tracer: coverage.Coverage) -> dict[str, dict[int, list[str]]]:
    """By file and line, the names of the contexts in which a tracer saw the line run."""
    data = tracer.get_data()
    return {
        Path(file).relative_to(mutants.ROOT).as_posix(): {
            line: sorted(set(names) - {""}) for line, names in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }


def clauses_of(groups: tuple[str, ...], without: tuple[str, ...]) -> list[Clause]:
    """The clauses of the groups, group by group, but for some ids."""
    return [c for group in groups for c in REGISTRY.values() if c.group == group and c.id not in without]


def digest_of_sources() -> str:
    """A digest of the packages' files."""
    digest = hashlib.sha256()
    for package in mutants.PACKAGES:
        for path in sorted((mutants.ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
