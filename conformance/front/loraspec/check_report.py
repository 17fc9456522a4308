"""The verdict on a layer, in a notebook or a script: `check` and the report that it returns."""

from __future__ import annotations

import contextlib
import html
import io
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from loraspec import distribution

if TYPE_CHECKING:
    from conformance.report.report import Report
    from conformance.run.selection import Selection

SIGNATURE = "f(orig_linear, dim, alpha, dropout, dropout_position, lora_A_init_method, lora_dtype)"
Words = str | Iterable[str] | None


class CheckReport:
    """The report of a check, which prints as the command's output.

    Attributes:
        report: every clause with its results, as in report.json.
        scripts: by failing clause, a script of torch and the target that shows the defect without the suite.
    """

    def __init__(
        self,
        report: Report,
        *,
        called: str = "",
        folder: Path | None = None,
        scripts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.report, self._called, self._folder, self.scripts = report, called, folder, scripts

    @property
    def passed(self) -> bool:
        """Whether every claimed MUST clause passes."""
        return self.report.verdict == "pass"

    @property
    def failures(self) -> tuple[str, ...]:
        """The ids of the clauses that turn the verdict."""
        from conformance.report.verdict import gates

        return tuple(clause.id for clause in self.report.clauses if gates(clause))

    def raise_for_failures(self) -> None:
        """Raise if the verdict is not a pass.

        Raises:
            AssertionError: with the failures, if a clause fails.
            RuntimeError: if the suite itself failed.
        """
        if self.report.errors:
            raise RuntimeError(f"the suite itself failed, which says nothing about the target:\n{self!r}")
        if not self.passed:
            raise AssertionError(repr(self))

    def __repr__(self) -> str:
        from conformance.report import terminal

        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            terminal.show(self.report, self._folder or Path("loraspec-report"))
        lines = printed.getvalue().strip().splitlines()
        return "\n".join(line for line in map(self.line, lines) if line is not None)

    def line(self, line: str) -> str | None:
        """A line of the command's output as a notebook shows it; None for what holds only for the command."""
        if self._folder is None:
            if line.startswith("report   ") or re.match(r"  \w+ +not claimed: ", line):
                return None
            line = re.sub(r", in full in \S*report\.json:$", ":", line)
        if self._called and (found := re.match(r"rerun    loraspec rerun '([\w-]+)", line)):
            again = f"again    loraspec.check({self._called}, clauses=[{found[1]!r}])"
            has_script = found[1] in self.scripts
            return f"{again}\nscript   report.scripts[{found[1]!r}] runs without the suite" if has_script else again
        return line

    def _repr_html_(self) -> str:
        colour = "#1a7f37" if self.passed else "#cf222e"
        first, *rest = html.escape(repr(self)).rsplit("\n", 1)[::-1]
        body = f"<details><summary>{len(self.failures)} failing clauses</summary><pre>{''.join(rest)}</pre></details>"
        return f'<div><b style="color: {colour}">{first}</b>{body}</div>'


def check(
    target: Any = None,
    *,
    groups: Words = None,
    clauses: Words = None,
    dtypes: Words = None,
    names: Mapping[str, Any] | None = None,
    profile: str = "quick",
    device: str = "cpu",
    seed: int = 0,
    workers: int | None = None,
    report_dir: str | Path | None = None,
) -> CheckReport:
    """Judge a layer, or anything that exposes names of the suite, in copies of this process.

    Args:
        target: a layer class, an instance of one, a function like `lora_linear`, a module, or the name of a target.
        groups, clauses, dtypes: only these; by default all that the target claims.
        names: by name of the suite the user's object, `{"LinearLoRA": MyLayer}`, or its name in the target.
        profile: the number of cases: quick, default or nightly.   seed: which cases are drawn.
        workers: processes; by default one for each processor.
        report_dir: a folder for report.json, report.html, junit.xml and scripts; by default none is written.
    Raises:
        ValueError, TypeError: if the target is no such thing, does not bind, or claims nothing that was chosen.
    """
    with usage_errors(target, names):
        selection = selected(target, names, groups, clauses, dtypes, profile=profile, device=device, seed=seed)
        from conformance.report import files
        from conformance.run import object_check
        from conformance.target.object_target import is_object

        folder = Path(report_dir) if report_dir is not None else None
        if folder is not None:
            files.prepare(folder)
        report, scripts = object_check.judge(selection, workers, quiet=not sys.stderr.isatty())
        if folder is not None:
            files.write(folder, report, scripts)
        called = report.target_name if is_object(selection.target) else ""
        return CheckReport(report, called=called or "", folder=folder, scripts=scripts)


def selected(
    target: Any, names: Mapping[str, Any] | None, groups: Words, clauses: Words, dtypes: Words, **options: Any
) -> Selection:
    """What to judge, with the target registered under a name; the suite's packages are pinned."""
    distribution.pin()
    from conformance.run.execution import check_names
    from conformance.run.selection import Selection
    from conformance.target.object_target import named

    chosen = {"groups": _listed(groups), "clauses": _listed(clauses), "dtypes": _listed(dtypes)}
    Selection.of("", **chosen, **options)  # what is misspelt is said before torch is imported
    selection = Selection.of(named(target, names), **chosen, **options)
    check_names(selection)
    return selection


def _listed(words: Words) -> tuple[str, ...] | None:
    return (words,) if isinstance(words, str) else None if words is None else tuple(words)


@contextlib.contextmanager
def usage_errors(target: Any, names: Mapping[str, Any] | None) -> Iterator[None]:
    """A region in which a wrong use of the suite is a ValueError that calls an object by its own name."""
    distribution.pin()
    from conformance.errors import UsageError

    try:
        yield
    except UsageError as error:
        things = [target] if target is not None else list((names or {}).values())
        called = ", ".join(getattr(each, "__name__", type(each).__name__) for each in things)
        text = re.sub(r"(target )?'?\bloraspec_object_\d+'?", called, str(error))
        if " does not bind" in text and "LinearLoRA(" in text:
            text += f"\n  a layer is built by {SIGNATURE}: pass a function that builds yours from these"
        raise ValueError(text) from None
