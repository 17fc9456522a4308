"""`loraspec run`: judge a target."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.commands import output
from conformance.errors import UsageError
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.run.profiles import PROFILES
from conformance.run.selection import LANES, Selection
from conformance.specification.groups import groups
from conformance.specification.versions import SPECS

if TYPE_CHECKING:
    from conformance.report.report import Report
    from conformance.run.run_target import Manner


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    run = output.reporting(commands, "run", "judge a target")
    run.add_argument("target", metavar="TARGET", help="package.module or package.module:attribute")
    add_selection(run)
    run.add_argument(
        "--shard",
        metavar="i/n",
        help="only the i-th of n parts of the trials, of about equal cost; see `loraspec merge`",
    )
    run.add_argument(
        "--deviations",
        type=Path,
        metavar="FILE",
        help="expected failures, each with a reason, beside the declared ones",
    )
    run.add_argument(
        "--write-deviations", type=Path, metavar="FILE", help="write the failing clauses there as expected failures"
    )
    run.add_argument("--smoke", action="store_true", help="only import the target and print what it claims")
    run.add_argument("--watch-clause", metavar="ID", help="judge this clause again at each save of the target's source")
    run.add_argument(
        "--github",
        action="store_true",
        help="annotate the target's source and write the job's summary (default if GITHUB_ACTIONS is true)",
    )
    add_execution(run)
    output.add(run)
    output.add_verbose(run)


def add_selection(run: argparse.ArgumentParser) -> None:
    """Add the options that select trials."""
    several = {"action": "append", "metavar": "NAME[,NAME…]"}
    run.add_argument("--group", **several, help=f"only these groups: {', '.join(groups())}")  # type: ignore[arg-type]
    run.add_argument("--clause", **several, help="only these clauses; wildcards, as in 'LIN-FWD*'")  # type: ignore[arg-type]
    run.add_argument("--exclude", **several, help="all but these clauses and groups; wildcards too")  # type: ignore[arg-type]
    run.add_argument("--dtype", **several, help=f"only these dtypes: {', '.join(FLOAT_DTYPES)}")  # type: ignore[arg-type]
    run.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    run.add_argument("--lane", help=f"only subjects that run in this lane: {', '.join(LANES)}")
    run.add_argument("--profile", help=f"number of cases: {', '.join(PROFILES)} (default: default; to watch, quick)")
    run.add_argument("--seed", type=int, default=0, help="seed of the cases (default 0)")
    run.add_argument("--spec", default=SPECS[-1], help=f"version of the specification: {', '.join(SPECS)}")


def add_execution(run: argparse.ArgumentParser) -> None:
    """Add the options for the execution of trials."""
    run.add_argument("-n", dest="workers", type=_workers, default=None, help="worker processes (default auto)")
    run.add_argument("--timeout", type=_number_of("seconds"), help="seconds for one clause on one subject and dtype")
    run.add_argument(
        "--memory", type=_number_of("GiB"), help="GiB for one process (default: its share of the available memory)"
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run of the same command, keeping the results in the report folder",
    )


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: expected auto, 0, 1, 2, …")
    return int(text)


def _number_of(unit: str) -> Callable[[str], float]:
    """A function that parses a positive number of a unit."""

    def number(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = 0.0
        if not 0 < found < 1e9:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of {unit}")
        return found

    return number


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from conformance.report import github_actions, terminal
    from conformance.run import run_target, shards
    from conformance.run.execution import Run
    from conformance.specification.former_ids import remarks
    from conformance.target import deviations

    named = [word.strip() for item in (*(options.clause or ()), options.watch_clause or "") for word in item.split(",")]
    for remark in remarks(named):
        terminal.console(stderr=options.json).print(remark)
    selection = selected(options, options.target, options.watch_clause, options.shard)
    given = deviations.read(options.deviations) if options.deviations else {}
    selection = dataclasses.replace(selection, deviations=tuple(given.items()))
    written = _writable(options.write_deviations)
    if options.watch_clause:
        return _watch(options, selection)
    if options.smoke:
        with Run(selection) as run:
            terminal.show_plan(shards.part(run.plan, selection.shard))
        return 0
    found, plan = run_target.judge(selection, options.report_dir, manner(options))
    code = output.show(found, options)
    if options.write_deviations:
        _write_deviations(options, found, written | given, narrowed=selection.narrowed)
    if options.github or github_actions.wanted(os.environ):
        github_actions.announce(found, plan.sources, options.report_dir, os.environ)
    return code


def _writable(path: Path | None) -> dict[str, str]:
    """The reasons in the file that the run will replace, before the run.

    Raises:
        UsageError: if the file is another kind of file, or cannot be written.
    """
    from conformance.target import deviations

    if path is None:
        return {}
    if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {str(path)!r}: expected a file in a folder that exists and can be written")
    return deviations.read(path) if path.exists() else {}


def _write_deviations(options: argparse.Namespace, found: Report, earlier: dict[str, str], *, narrowed: bool) -> None:
    """Write the file of expected failures, and say how to use it."""
    from conformance.report import files
    from conformance.report.expected_failures import expected_failures
    from conformance.report.terminal import console
    from conformance.target import deviations

    path, out = options.write_deviations, console(stderr=options.json)
    if found.errors:
        out.print(f"expected {path} is not written, since the suite itself failed")
        return
    reasons = expected_failures(found, earlier, narrowed=narrowed)
    files.replace(path, deviations.text(reasons))
    out.print(f"expected {path} has {len(reasons)} expected failures; next: --deviations {path}")


def selected(
    options: argparse.Namespace, target: str, watched: str | None = None, shard: str | None = None
) -> Selection:
    """The selection of the options for a target. If a clause is watched, the selection has only that clause.

    Raises:
        UsageError: if the target is a file name, naming the module to give instead; if the spec is unknown; or if
            `Selection` refuses an option.
    """
    path = Path(target)
    if target.endswith(".py") or "/" in target or os.sep in target:
        name = ".".join((path.parent / path.stem).parts).lstrip("./")
        raise UsageError(f"target {target!r} is a file name: expected a module, as in `loraspec run {name}`")
    if options.spec not in SPECS:
        raise UsageError(f"unknown spec {options.spec!r}: expected one of {', '.join(SPECS)}")
    return Selection.of(
        target,
        groups=options.group,
        clauses=[watched] if watched else options.clause,
        dtypes=options.dtype,
        excluded=options.exclude,
        device=options.device,
        lane=options.lane,
        profile=options.profile or ("quick" if watched else "default"),
        seed=options.seed,
        shard=shard,
    )


def _watch(options: argparse.Namespace, selection: Selection) -> int:
    from conformance.run import watch_mode

    for name in ("clause", "group", "exclude", "shard", "smoke", "resume", "json", "workers", "write_deviations"):
        if getattr(options, name) not in (None, False):
            option = "-n" if name == "workers" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} does not go with --watch-clause, which judges one clause and writes no report")
    return watch_mode.follow(selection, options.timeout, options.memory)


def manner(options: argparse.Namespace, title: str = "") -> Manner:
    """The execution settings of the options."""
    from conformance.run.run_target import Manner

    quiet = options.quiet or options.json
    return Manner(options.workers, options.timeout, options.memory, options.resume, quiet, title)
