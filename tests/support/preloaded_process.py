"""`loraspec`, and pytest, in copies of one process that has torch and the suite imported: a new process takes seconds.

The process reads requests, one a line, forks a copy for each, and answers by its exit code and the processor's seconds
that it took. It ends with its input.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from conformance.isolation import processes
from conformance.run.execution import ONE_THREAD

ROOT = Path(__file__).parents[2]
SPENT = [0.0]  # seconds of the processor so far, which no account of this process's children has


def command(name: str, arguments: tuple[str, ...], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """What `loraspec` or `pytest` prints and ends with in this folder, and with the environment of this process."""
    with tempfile.TemporaryDirectory(prefix="loraspec-") as folder:
        streams = [str(Path(folder) / name) for name in ("out", "err")]
        asked = {"command": name, "arguments": arguments, "cwd": str(cwd)}
        request = {**asked, "environment": dict(os.environ), "streams": streams}
        code = _asked(request, timeout)
        out, err = (Path(stream).read_text(encoding="utf-8") for stream in streams)
    return subprocess.CompletedProcess([name, *arguments], code, out, err)


@cache
def _server() -> subprocess.Popen[str]:
    # whether Triton interprets is set before it is imported, by each command
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.preloaded_process"],
        cwd=ROOT,
        env={**environment, **ONE_THREAD},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    """End it by the end of its input, so that what it and its children took is counted."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.close()
    server.wait()
    server.stdout.close()


def _asked(request: dict[str, Any], timeout: float) -> int:
    import select

    server = _server()
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
    """Answer requests until there are no more."""
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
    """Be the command, as a process of its own would be."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    writes = [os.open(stream, os.O_WRONLY | os.O_CREAT) for stream in request["streams"]]
    for source, goal in zip((nothing, *writes), (0, 1, 2), strict=True):
        os.dup2(source, goal)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  (they live as long as the process)
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

        # assertions in what is imported already cannot be rewritten, which pytest would warn of
        sys.exit(pytest.main(["--assert=plain", *request["arguments"]]))
    from conformance import cli

    sys.exit(cli.main(request["arguments"]))


if __name__ == "__main__":
    _serve()
