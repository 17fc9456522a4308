"""`loraspec run`: judge a target."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.clause import FLOAT_DTYPES, GROUPS
from conformance.commands import output
from conformance.profiles import PROFILES
from conformance.selection import LANES, SPECS, Selection, UsageError

if TYPE_CHECKING:
    from conformance.journal import Journal
    from conformance.report import Outcome


def add(commands: output.Commands) -> None:
    """Its options."""
    run = output.reporting(commands, "run", "judge a target")
    run.add_argument("target", metavar="TARGET", help="package.module or package.module:attribute")
    _add_selection(run)
    _add_execution(run)


def _add_selection(run: argparse.ArgumentParser) -> None:
    several = {"action": "append", "metavar": "NAME[,NAME…]"}
    run.add_argument("--group", **several, help=f"only these: {', '.join(GROUPS)}")  # type: ignore[arg-type]
    run.add_argument("--clause", **several, help="only these clauses")  # type: ignore[arg-type]
    run.add_argument("--dtype", **several, help=f"only these: {', '.join(FLOAT_DTYPES)}")  # type: ignore[arg-type]
    run.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    run.add_argument("--lane", help=f"only subjects that run in this lane: {', '.join(LANES)}")
    run.add_argument("--profile", help=f"how many cases: {', '.join(PROFILES)} (default: default; to watch, quick)")
    run.add_argument("--seed", type=int, default=0, help="which cases are drawn (default 0)")
    run.add_argument(
        "--shard",
        metavar="i/n",
        help="only the i-th of n parts of the trials, of about equal cost; see `loraspec combine`",
    )
    run.add_argument("--spec", default=SPECS[-1], help=f"version of the specification: {', '.join(SPECS)}")


def _add_execution(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "-n", dest="workers", type=_workers, default=None, help="worker processes; 0 for none (default auto)"
    )
    run.add_argument("--timeout", type=_number_of("seconds"), help="seconds for one clause on one subject and dtype")
    run.add_argument(
        "--memory", type=_number_of("GiB"), help="GiB for one process (default: its share of what is available)"
    )
    run.add_argument("--smoke", action="store_true", help="only import the target and see what it claims")
    run.add_argument("--watch-clause", metavar="ID", help="judge this clause again at each save of the target's source")
    run.add_argument(
        "--resume",
        action="store_true",
        help="keep the results of the same run, cut off, in the report folder; only the rest is run",
    )
    run.add_argument(
        "--github",
        action="store_true",
        help="annotate the target's source and write the job's summary, as where GITHUB_ACTIONS is true",
    )
    output.add(run)


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: expected auto, 0, 1, 2, …")
    return int(text)


def _number_of(unit: str) -> Callable[[str], float]:
    """What reads a positive number of these."""

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
    """Run it; the exit code."""
    from conformance import github, report, run, shards, terminal

    _check_target_name(options.target)
    if options.spec not in SPECS:
        raise UsageError(f"unknown spec {options.spec!r}: expected one of {', '.join(SPECS)}")
    selection = Selection.of(
        options.target,
        groups=options.group,
        clauses=[options.watch_clause] if options.watch_clause else options.clause,
        dtypes=options.dtype,
        device=options.device,
        lane=options.lane,
        profile=options.profile or ("quick" if options.watch_clause else "default"),
        seed=options.seed,
        shard=options.shard,
    )
    if options.watch_clause:
        return _watch(options, selection)
    if not options.smoke:
        report.prepare(options.report_dir)
    whole = run.smoke(selection)
    plan = shards.part(whole, selection.shard)
    if options.smoke:
        terminal.show_plan(plan)
        return 0
    journal = _journal(options, selection, whole)
    progress = terminal.Progress()

    def watch(outcome: Outcome, planned: int) -> None:
        journal.record(outcome)
        progress.update(outcome, planned)

    limits = {"workers": options.workers, "timeout": options.timeout, "memory": options.memory}
    try:
        outcome = run.execute(selection, plan, known=journal.recorded.outcome, watcher=watch, **limits)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command with --resume continues from {journal.path}") from None
    finally:
        progress.stop()
    found = report.assemble({**plan, "device_name": journal.devices}, selection, outcome)
    found["seconds"] = journal.seconds
    report.write(options.report_dir, found, outcome.reproducers(plan))
    code = output.show(found, options)
    if options.github or github.wanted(os.environ):
        github.announce(found, plan["sources"], options.report_dir, os.environ)
    return code


def _watch(options: argparse.Namespace, selection: Selection) -> int:
    from conformance import loop

    for name in ("clause", "group", "shard", "smoke", "resume", "json", "workers"):
        if getattr(options, name) not in (None, False):
            option = "-n" if name == "workers" else f"--{name}"
            raise UsageError(f"{option} does not go with --watch-clause, which judges one clause and writes no report")
    return loop.follow(selection, options.timeout, options.memory)


def _check_target_name(target: str) -> None:
    """Raise UsageError for a file name, saying which module name is meant."""
    path = Path(target)
    if target.endswith(".py") or "/" in target or os.sep in target:
        name = ".".join((path.parent / path.stem).parts).lstrip("./")
        raise UsageError(f"target {target!r} is a file name: expected a module, as in `loraspec run {name}`")


def _journal(options: argparse.Namespace, selection: Selection, plan: dict[str, Any]) -> Journal:
    """The journal to write, which an earlier run may have begun; says on standard error what it did."""
    from conformance.journal import Journal
    from conformance.terminal import console

    if not options.resume:
        return Journal.begin(options.report_dir, selection, plan)
    journal = Journal.resume(options.report_dir, selection, plan)
    done, left = len(journal.recorded.outcome.results), len(journal.recorded.left)
    text = f"resuming: {done} trials have their result, {left} are left"
    if not left:
        text = f"nothing is left to do: all {done} trials have their result"
    elif not done:
        text = f"nothing to resume in {str(options.report_dir)!r}: all {left} trials are run"
    console(stderr=True).print(text)
    return journal
