"""A pytest session of the suite: trials become parameters, results travel to the controller, a summary is printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import pytest

from conformance.errors import UsageError
from conformance.judgement.result import CRASHED, FAIL, PASS, Result, without_addresses
from conformance.report.assemble import assemble
from conformance.report.files import finish, prepare, write
from conformance.report.outcome import Outcome
from conformance.report.plan import Plan
from conformance.report.report import SuiteFailure
from conformance.report.trial_keys import Key, key_of
from conformance.report.verdict import exit_code
from conformance.run.journal import Journal
from conformance.run.selection import Selection
from conformance.run.shards import part
from conformance.specification.groups import FOLDER

if TYPE_CHECKING:
    from conformance.run.trial import Trial
    from conformance.specification.clause import Clause


class Session:
    """The hooks of a session that runs the suite. In a pytest-xdist worker, only the hooks that run trials act."""

    def __init__(self, config: pytest.Config, selection: Selection) -> None:
        self.config, self.selection = config, selection
        self.worker: str | None = getattr(config, "workerinput", {}).get("workerid")
        self.reported = bool(config.option.loraspec_report_dir)
        self.folder = _path(config.option.loraspec_report_dir) if self.worker is None else None
        self.outcome = Outcome()
        self.deviations: dict[str, str] = {}
        self.journal: Journal | None = None
        if self.folder is not None:
            try:
                prepare(self.folder)
            except UsageError as error:
                raise pytest.UsageError(str(error)) from error

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Add a parameter for each trial of a clause, or a skipped one if the target does not claim the clause."""
        clauses = getattr(metafunc.function, "clauses", None)
        if clauses is None or "trial" not in metafunc.fixturenames:
            return
        found: list[Any] = []
        for clause in clauses:
            if self._chosen(clause):
                offered = self._offered(clause)
                found += [pytest.param(trial, id=trial.id) for trial in offered] or [_skipped(clause)]
        metafunc.parametrize("trial", found or [_skipped(clauses[0])])

    def _chosen(self, clause: Clause) -> bool:
        return self.selection.includes(clause.id, clause.group)

    def _offered(self, clause: Clause) -> list[Trial]:
        from conformance.errors import TargetError
        from conformance.run.trial import loaded, trials
        from conformance.target.fault import looking_at

        try:
            target = loaded(self.selection.target, self.selection.device)
            with looking_at(self.selection.target):
                return trials(clause, target, self.selection, reproduces=self.reported)
        except TargetError as error:
            raise pytest.UsageError(str(error)) from error

    @cached_property
    def _plan(self) -> Plan:
        """The plan of all trials of the selection, including the trials of other shards."""
        from conformance.run.plan import plan

        try:
            return plan(self.selection)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error

    @property
    def _part(self) -> Plan:
        try:
            return part(self._plan, self.selection.shard)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error

    @pytest.hookimpl(tryfirst=True)  # pytest-xdist's hook stops all later ones
    def pytest_collection(self) -> None:
        """Start the journal of a session that writes a report."""
        if self.folder is not None and not self.config.option.collectonly:
            self.journal = Journal.begin(self.folder, self.selection, self._plan)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect clauses that were not chosen, and trials of other shards."""
        wanted = set(self._part.keys) if self.selection.shard is not None else None
        out = [item for item in items if _is_trial(item) and not self._wanted(item, wanted)]
        if out:
            left_out = set(map(id, out))
            items[:] = [item for item in items if id(item) not in left_out]
            config.hook.pytest_deselected(items=out)

    def _wanted(self, item: pytest.Item, wanted: set[Key] | None) -> bool:
        clauses = item.function.clauses  # type: ignore[attr-defined]
        chosen = any(map(self._chosen, clauses))
        return chosen and (wanted is None or key_of(item.nodeid) in wanted)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach a trial's result to its report, as plain data that can be sent between processes."""
        report = yield
        trial: Trial | None = _trial(item)
        if trial is not None and report.when == "call" and trial.result is not None:
            report.loraspec = {  # type: ignore[attr-defined]
                "result": dataclasses.asdict(trial.result),
                "script": trial.reproducer,
                "deviation": trial.deviation,
            }
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect results, crashes and failures of the suite itself."""
        if self.worker is not None:
            return
        key, carried = key_of(report.nodeid), getattr(report, "loraspec", None)
        if carried is not None:
            if carried["deviation"]:
                self.deviations[carried["result"]["clause"]] = carried["deviation"]
            self._add(Result(**carried["result"]), carried["script"])
        elif report.failed and _ours(report.nodeid):
            if key and str(report.when) == "???":  # pytest-xdist reports a dead worker this way
                self._add(Result(*key, status=CRASHED, message="ended the process that judged it"))
            else:
                self._error(" ".join(key) if key else report.nodeid, str(report.longrepr))

    def _add(self, result: Result, script: str | None = None) -> None:
        self.outcome.add(result, script)
        self._record()

    def _error(self, where: str, text: str) -> None:
        text = without_addresses(text)
        self.outcome.errors.append(SuiteFailure(where, text))
        self._record()

    def _record(self) -> None:
        if self.journal is not None:
            self.journal.record(self.outcome)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record a clause file that does not import as a failure of the suite."""
        if report.failed and self.worker is None and _ours(report.nodeid):
            self._error(report.nodeid, str(report.longrepr))

    def pytest_internalerror(self, excrepr: Any) -> None:
        """Record a failure of pytest itself."""
        if self.worker is None:
            self._error("pytest", str(excrepr))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Fail if a declared deviation no longer fails, and write the report if a report folder is given."""
        if self.worker is not None or self.config.option.collectonly:
            return
        if self._stale() and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        finished = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if self.folder is not None and self.journal is not None and finished:
            report = assemble(self._part, self.outcome, self.selection.settings)
            report = finish(report, self.journal.seconds)
            write(self.folder, report, self.outcome.reproducers(self._part))
            if exit_code(report) and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _stale(self) -> list[str]:
        """The clauses with a declared deviation of which no trial failed."""
        if self.selection.narrowed:
            return []
        bad = {r.clause for r in self.outcome.results.values() if r.status not in (PASS, "unsupported")}
        return sorted(set(self.deviations) - bad)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the number of clauses tested, the worst error ÷ budget, and the stale deviations."""
        results = list(self.outcome.results.values())
        if not results:
            return
        failed = {r.clause for r in results if r.status in (FAIL, CRASHED)}
        rated = [r for r in results if r.worst_ratio is not None]
        clauses = {r.clause for r in results}
        line = f"loraspec: {self.selection.target}, {len(clauses)} clauses, {len(failed)} failing"
        if rated:
            worst = max(rated, key=lambda r: r.worst_ratio or 0.0)
            where = f"{worst.clause} {worst.subject} {worst.dtype}"
            line += f"; worst error ÷ budget {worst.worst_ratio:.3g} ({where})"
        interpreted = {r.clause for r in results if r.launches}
        if interpreted:
            line += f"; {len(interpreted)} clauses ran Triton kernels (interpreted)"
        terminalreporter.write_line(line)
        for clause in self._stale():
            terminalreporter.write_line(
                f"FAILED {clause}: a declared deviation ({self.deviations[clause]}) that no longer fails",
                red=True,
            )


def _ours(nodeid: str) -> bool:
    # the path is relative to the session's root, which may be the suite or one of its folders; the path is empty if
    # the session collects a single file outside its root
    path = PurePath(nodeid.partition("::")[0])
    if path == PurePath():
        return key_of(nodeid) is not None
    return any(file.parts[-len(path.parts) :] == path.parts for file in FOLDER.rglob("*.py"))


def _skipped(clause: Clause) -> Any:
    # a label without hyphens cannot be mistaken for the label of a trial
    label = f"not_claimed_{clause.id.replace('-', '_')}"
    return pytest.param(None, id=label, marks=pytest.mark.skip(reason="not claimed"))


def _path(option: str | None) -> Path | None:
    return Path(option) if option else None


def _is_trial(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "function", None), "clauses")


def _trial(item: pytest.Item) -> Trial | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("trial") if callspec is not None and _is_trial(item) else None
