"""One judgement of `--watch-clause`: a fork imports the target, judges one clause, and writes its results to disk."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

from conformance.errors import UsageError
from conformance.judgement.result import FAIL
from conformance.run.selection import Selection
from conformance.run.worker_status import Events, Watch
from conformance.target.fingerprint import INSTALLED

Stamp = tuple[int, int, int]
Stamps = dict[Path, Stamp | None]


def prepare() -> None:
    """Import every module that a judgement needs, except the target, so that a fork starts without these imports."""
    from conformance.run import plan as planning
    from conformance.run import trial  # noqa: F401
    from conformance.specification.clause import load_all

    load_all()
    late = ["hypothesis", "torch.fx.experimental.symbolic_shapes"]
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
        late.append("triton.runtime.interpreter")
    for name in late:
        importlib.import_module(name)
    planning.distributions()


def judge(selection: Selection, folder: Path, limit: float) -> None:
    """Judge the target's trials, and end the process.

    Files in the folder: `plan.json`, or `main.doing` with the reason why there is no plan; the events; `files.json`,
    the sources of the target.
    """
    os.setsid()  # so that processes started by the target are ended with this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # a .pyc identifies its source by size and by time in whole seconds, so it misses a second save within a second
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        _judge(selection, folder, limit, before)
    except UsageError as error:
        _leave(folder, _traced(error) | _sources(before, selection.target))
        Watch(folder, "main", limit).doing("refused", str(error))
    except Exception:  # noqa: BLE001  (any other exception is a failure of the suite)
        Events(folder).write(error=traceback.format_exc(), where=selection.target)
    _leave(folder, _sources(before, selection.target))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # without waiting for the target's threads and exit handlers


def _judge(selection: Selection, folder: Path, limit: float, before: set[str]) -> None:
    from conformance.run import plan as planning
    from conformance.run.trial import loaded, trials
    from conformance.specification.clause import REGISTRY

    watch, events = Watch(folder, "main", limit), Events(folder)
    with watch.importing():
        plan = planning.plan(selection)
    _leave(folder, _sources(before, selection.target))  # a trial may end the process
    (folder / "plan.json").write_text(json.dumps(plan.to_json()), encoding="utf-8")
    target = loaded(selection.target, selection.device)
    shrinks = True
    for trial in trials(REGISTRY[selection.clauses[0]], target, selection, watch):
        if not shrinks:
            trial.profile = dataclasses.replace(trial.profile, shrinks=0)
        events.write(start=(trial.clause.id, trial.subject.name, trial.dtype))
        result = trial.examine()
        events.write(result=dataclasses.asdict(result), script=None)
        shrinks = shrinks and result.status != FAIL  # the user needs only one shrunk case


def stamps(files: Iterable[Path]) -> Stamps:
    """A stamp of each file, which changes with its content; None for a missing file."""
    return {path: _stamp(path) for path in files}


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def files_in(folder: Path) -> Stamps:
    """The source files that a fork recorded, with the stamps of its first record."""
    path = folder / "files.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {Path(name): tuple(stamp) for name, stamp in found.items()}


def _leave(folder: Path, files: set[str]) -> None:
    found = {**stamps(map(Path, files)), **files_in(folder)}
    written = json.dumps({str(path): stamp for path, stamp in found.items() if stamp is not None})
    (folder / "files.json").write_text(written, encoding="utf-8")


def _sources(before: set[str], target: str) -> set[str]:
    """The files of the target's module and of all modules imported since `before`, except installed packages."""
    module = target.partition(":")[0]
    names = [module, *(name for name in list(sys.modules) if name not in before)]
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names}
    return {file for name, file in files.items() if isinstance(file, str) and (name == module or _own(file))}


def _traced(error: BaseException) -> set[str]:
    """The files in an error's traceback, and the files whose syntax it rejects."""
    found: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        found |= {frame.filename for frame in traceback.extract_tb(cause.__traceback__)}
        found |= {cause.filename} if isinstance(cause, SyntaxError) and cause.filename else set()
        cause = cause.__cause__
    return {file for file in found if _own(file)}


def _own(file: str) -> bool:
    path = Path(file)
    installed = set(INSTALLED) & set(path.parts) or path.is_relative_to(sysconfig.get_path("stdlib"))
    return path.is_file() and not installed and not path.is_relative_to(Path(__file__).parents[1])
