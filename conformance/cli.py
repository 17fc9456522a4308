"""The command `loraspec`: run, combine, explain, rerun, init, spec."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance import serve, shadow
from conformance.clause import FLOAT_DTYPES, GROUPS
from conformance.profiles import PROFILES
from conformance.selection import LANES, SPECS, Selection, UsageError, suggestion

if TYPE_CHECKING:
    from conformance.journal import Journal
    from conformance.report import Outcome

EXIT_CODES = """\
exit codes: 0 every claimed MUST clause passes; 1 one fails, crashes or decides nothing, or a declared
deviation no longer fails; 2 usage, or a target that does not import, bind or claim anything chosen; 3 the
suite itself failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    from conformance.run import SuiteError

    options = _parser().parse_args(arguments)
    sys.path[:0] = [os.getcwd()] if os.getcwd() not in sys.path else []
    try:
        shadow.check()
        command = {"run": _run, "combine": _combine, "explain": _explain, "rerun": _rerun, "init": _init, "spec": _spec}
        command["serve"] = serve.execute
        return command[options.command](options)
    except UsageError as error:
        return _complain(f"loraspec: {error}", 2)
    except SuiteError as error:
        return _complain(f"loraspec: the suite itself failed, which says nothing about the target:\n{error}", 3)
    except KeyboardInterrupt as interruption:
        return _complain(f"loraspec: interrupted; {interruption or 'nothing was written'}", 130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _complain(text: str, code: int) -> int:
    from conformance.terminal import console

    console(stderr=True).print(text)
    return code


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("loraspec", description="Conformance of LoRA implementations.", epilog=EXIT_CODES)
    parser.formatter_class = raw
    parser.add_argument("--version", action="version", version=f"loraspec {_version()}, spec {SPECS[-1]}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="judge a target", epilog=EXIT_CODES, formatter_class=raw)
    run.add_argument("target", metavar="TARGET", help="package.module or package.module:attribute")
    _add_selection(run)
    _add_execution(run)
    combine = commands.add_parser("combine", help="put the reports of all shards together", epilog=EXIT_CODES)
    combine.formatter_class = raw
    combine.add_argument("shards", metavar="DIR", type=Path, nargs="+", help="the report folder of a shard")
    _add_output(combine)
    explain = commands.add_parser("explain", help="what a clause says and how it is checked")
    explain.add_argument("id", metavar="ID", help="a clause (LIN-BWD-DA) or a group (linear)")
    again = commands.add_parser("rerun", help="check one case again")
    again.add_argument("case", metavar="CASE", help="the quoted words of a failure's rerun line, or a report.json")
    again.add_argument("clause", nargs="?", help="with a report.json: which clause's case")
    again.add_argument("--device", help="cpu, cuda or cuda:N")
    again.add_argument("--lane", choices=LANES)
    init = commands.add_parser("init", help="write a target module to start from")
    init.add_argument("path", metavar="my_target.py", type=Path)
    spec = commands.add_parser("spec", help="write SPEC.md from the clauses")
    spec.add_argument("--check", action="store_true", help="only say whether it is up to date")
    serve.add(commands)
    return parser


def _add_selection(run: argparse.ArgumentParser) -> None:
    several = {"action": "append", "metavar": "NAME[,NAME…]"}
    run.add_argument("--group", **several, help=f"only these: {', '.join(GROUPS)}")  # type: ignore[arg-type]
    run.add_argument("--clause", **several, help="only these clauses")  # type: ignore[arg-type]
    run.add_argument("--dtype", **several, help=f"only these: {', '.join(FLOAT_DTYPES)}")  # type: ignore[arg-type]
    run.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    run.add_argument("--lane", help=f"only subjects that run in this lane: {', '.join(LANES)}")
    run.add_argument("--profile", default="default", help=f"how many cases: {', '.join(PROFILES)}")
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
    run.add_argument("--timeout", type=_seconds, help="seconds for one clause on one subject and dtype")
    run.add_argument("--memory", type=_gib, help="GiB for one process (default: its share of what is available)")
    run.add_argument("--smoke", action="store_true", help="only import the target and see what it claims")
    run.add_argument(
        "--resume",
        action="store_true",
        help="keep the results of the same run, cut off, in the report folder; only the rest is run",
    )
    _add_output(run)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--report-dir", type=Path, default=Path("loraspec-report"), help="default loraspec-report")
    command.add_argument("-q", "--quiet", action="store_true", help="failures and the verdict only")
    command.add_argument("--json", action="store_true", help="print the report instead")


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: expected auto, 0, 1, 2, …")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def _gib(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GiB")
    return size


def _version() -> str:
    try:
        return importlib.metadata.version("loraspec")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _run(options: argparse.Namespace) -> int:
    from conformance import report, run, shards, terminal

    _check_target_name(options.target)
    if options.spec not in SPECS:
        raise UsageError(f"unknown spec {options.spec!r}: expected one of {', '.join(SPECS)}")
    selection = Selection.of(
        options.target,
        groups=options.group,
        clauses=options.clause,
        dtypes=options.dtype,
        device=options.device,
        lane=options.lane,
        profile=options.profile,
        seed=options.seed,
        shard=options.shard,
    )
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

    known, limits = (
        journal.recorded.outcome,
        {"workers": options.workers, "timeout": options.timeout, "memory": options.memory},
    )
    try:
        outcome = run.execute(selection, plan, known=known, watcher=watch, **limits)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command with --resume continues from {journal.path}") from None
    finally:
        progress.stop()
    found = report.assemble({**plan, "device_name": journal.devices}, selection, outcome)
    found["seconds"] = journal.seconds
    report.write(options.report_dir, found, outcome.reproducers(plan))
    return _shown(found, options)


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


def _combine(options: argparse.Namespace) -> int:
    from conformance import combine, report

    report.prepare(options.report_dir)
    return _shown(combine.combine(options.shards, options.report_dir), options)


def _shown(found: dict[str, Any], options: argparse.Namespace) -> int:
    """Show a report as the options ask; its exit code."""
    from conformance import report, terminal

    if options.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        terminal.show(found, options.report_dir, quiet=options.quiet)
    return report.exit_code(found)


def _check_target_name(target: str) -> None:
    """Raise UsageError for a file name, saying which module name is meant."""
    path = Path(target)
    if target.endswith(".py") or "/" in target or os.sep in target:
        name = ".".join((path.parent / path.stem).parts).lstrip("./")
        raise UsageError(f"target {target!r} is a file name: expected a module, as in `loraspec run {name}`")


def _explain(options: argparse.Namespace) -> int:
    from conformance import spec, terminal

    try:
        entries = spec.read()
    except FileNotFoundError:
        raise UsageError(f"{spec.PATH} is missing: write it with `loraspec spec`") from None
    out = terminal.console()
    members = [entry for entry in entries.values() if entry.group == options.id]
    if members:
        for entry in members:
            out.print(f"{entry.id:<20} {entry.level:<6} {entry.sentence}")
        return 0
    if options.id not in entries:
        raise UsageError(f"unknown clause {options.id!r}: {suggestion(options.id, [*entries, *GROUPS])}")
    for line in terminal.explanation(entries[options.id]):
        out.print(line)
    return 0


def _rerun(options: argparse.Namespace) -> int:
    import dataclasses

    from conformance import again, terminal

    path = Path(options.case)
    if path.suffix == ".json":
        line = again.from_report(path, options.clause)
    elif options.clause is not None:
        raise UsageError(f"{options.clause!r} comes after the case: quote the whole case as one argument")
    else:
        line = again.parse(options.case)
    given = {name: value for name in ("device", "lane") if (value := getattr(options, name)) is not None}
    status, seen = again.check(dataclasses.replace(line, **given))
    out = terminal.console()
    out.print(f"{status.upper()} {line.clause} {line.target} {line.case}")
    for text in terminal.message_lines(seen):
        out.print(text)
    return 0 if status == "pass" else 1


def _init(options: argparse.Namespace) -> int:
    from conformance import template, terminal

    template.write(options.path)
    name = options.path.stem
    terminal.console().print(f"wrote {options.path}; next: loraspec run {name} --group linear --profile quick")
    return 0


def _spec(options: argparse.Namespace) -> int:
    from conformance import spec, terminal
    from conformance.clause import load_all
    from conformance.report import replace

    text = spec.document(load_all().values())
    current = spec.PATH.read_text(encoding="utf-8") if spec.PATH.exists() else None
    if options.check:
        if text != current:
            raise UsageError(f"{spec.PATH} is out of date: run `loraspec spec`")
        return 0
    replace(spec.PATH, text)
    terminal.console().print(f"wrote {spec.PATH}")
    return 0
