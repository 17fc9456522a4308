"""Run commands in forks of one process that has imported torch and the suite; a new process takes seconds.

The process reads one request per line and forks for each. It answers with the fork's exit code and CPU seconds. It
ends at the end of its input. Each fork for a copy of the project imports the suite from there, since its files change.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from conformance.isolation import processes
from conformance.run.execution import ONE_THREAD

ROOT = Path(__file__).parents[2]
PROJECT = ("conformance", "loraspec", "optimized", "reference", "tests")  # its packages
LIBRARIES = "--libraries"  # for a copy of the project: the process imports libraries only
SPENT = [0.0]  # CPU seconds of all commands so far; getrusage of this process's children lacks them


def command(
    name: str,
    arguments: tuple[str, ...],
    cwd: Path,
    timeout: float,
    *,
    project: Path = ROOT,
    environment: Mapping[str, str] = os.environ,
    merged: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `loraspec`, `pytest` or `python -m` in a folder and return its output and exit code.

    Args:
        project: the project whose suite runs: this one or a copy of it.
        environment: the variables of the command.
        merged: whether errors are written into the output, as in a terminal.
    """
    with tempfile.TemporaryDirectory(prefix="loraspec-") as folder:
        streams = [str(Path(folder) / name) for name in ("out", "out" if merged else "err")]
        asked = {"command": name, "arguments": arguments, "cwd": str(cwd)}
        request = {**asked, "environment": dict(environment), "streams": streams}
        code = _asked(request, timeout, project)
        out, err = (Path(stream).read_text(encoding="utf-8") for stream in streams)
    return subprocess.CompletedProcess([name, *arguments], code, out, "" if merged else err)


@cache
def _server(project: Path) -> subprocess.Popen[str]:
    # Each command sets TRITON_INTERPRET itself, before it imports Triton.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    of_copy = {} if project == ROOT else {"PYTHONPATH": os.pathsep.join(map(str, import_paths(project)))}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.preloaded_process", *([LIBRARIES] if of_copy else [])],
        cwd=project,
        env={**environment, **ONE_THREAD, **of_copy},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_end, server)
    return server


def import_paths(project: Path) -> tuple[Path, Path]:
    """The folders of a project from which its packages are imported."""
    return project / "conformance" / "front", project


def _end(server: subprocess.Popen[str]) -> None:
    """Close the server's input and wait for it, so that its CPU time and its children's are counted."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.close()
    server.wait()
    server.stdout.close()


def _asked(request: dict[str, Any], timeout: float, project: Path) -> int:
    import select

    server = _server(project)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], timeout)[0]:
        server.kill()
        _server.cache_clear()
        raise subprocess.TimeoutExpired(list(request["arguments"]), timeout)
    answer = server.stdout.readline()
    assert answer, "the process with the suite imported ended"
    code, seconds = json.loads(answer)
    SPENT[0] += seconds
    return int(code)


def _serve() -> None:
    """Answer requests until the input ends."""
    if LIBRARIES in sys.argv:
        for name in ("torch", "hypothesis", "pytest", "rich.console"):
            importlib.import_module(name)
        for name in [name for name in sys.modules if name.partition(".")[0] in PROJECT]:
            del sys.modules[name]
    else:
        from conformance.run import reload_worker

        reload_worker.prepare()
    assert "triton" not in sys.modules
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        request = json.loads(line)
        number = processes.fork(lambda request=request: _run(request))
        _, status, used = os.wait4(number, 0)
        answers.write(json.dumps([processes.exit_code(status), used.ru_utime + used.ru_stime]) + "\n")


def _run(request: dict[str, Any]) -> None:
    """Run the command in this fork as a new process would."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    writes = [os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for stream in request["streams"]]
    for source, goal in zip((nothing, *writes), (0, 1, 2), strict=True):
        os.dup2(source, goal)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  (the process needs them until it ends)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = [request["command"], *request["arguments"]]
    sys.path[:0] = [request["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    if request["command"] == "pytest":
        import pytest

        # pytest would warn that it cannot rewrite assertions in modules that are already imported
        sys.exit(pytest.main(["--assert=plain", *request["arguments"]]))
    if request["command"] == "python":
        _, module, *sys.argv[1:] = request["arguments"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit(0)
    from conformance import cli

    sys.exit(cli.main(request["arguments"]))


if __name__ == "__main__":
    _serve()
