"""Processes forked from this one."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from conformance.isolation import processes
from conformance.isolation.processes import Child, Tail
from conformance.run import supervisor
from conformance.run.supervisor import born
from conformance.run.worker_status import Watch

PATIENCE = 60.0  # seconds; only a failing test waits this long


def awaited(path: Path) -> str:
    """Wait until a process has written to a file; return the text."""
    deadline = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path.name} was not written"
        time.sleep(0.01)
    return path.read_text()


def ended(number: int) -> bool:
    """Wait for a process to end; False if it does not in time."""
    deadline = time.monotonic() + PATIENCE
    while born(number) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not born(number)


def test_a_child_has_no_input_and_its_output_is_kept() -> None:
    def work() -> None:
        sys.stdout.write(f"read {sys.stdin.read()!r}\n")
        os.write(2, b"and by descriptor\n")

    child = Child(work)
    assert child.wait() == 0
    assert child.printed.lines(2) == "\n  read ''\n  and by descriptor"


@pytest.mark.parametrize(("how", "code"), [("raises", 1), ("exits", 7), ("is killed", -signal.SIGUSR2)])
def test_a_childs_exit_status_is_reported(how: str, code: int) -> None:
    def work() -> None:
        if how == "raises":
            raise ValueError("in the child")
        if how == "exits":
            sys.exit(7)
        os.kill(os.getpid(), signal.SIGUSR2)

    child = Child(work)
    assert (child.wait(PATIENCE), child.poll()) == (code, code)
    assert ("ValueError: in the child" in child.printed.lines(20)) == (how == "raises")


def test_killing_a_child_kills_its_own_children(tmp_path: Path) -> None:
    def work() -> None:
        number = processes.fork(lambda: time.sleep(10 * PATIENCE))
        (tmp_path / "pid").write_text(str(number))
        time.sleep(10 * PATIENCE)

    child = Child(work)
    grandchild = int(awaited(tmp_path / "pid"))
    assert child.wait(0.05) is None
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert ended(grandchild)


def test_a_forked_process_ends_with_its_parent(tmp_path: Path) -> None:
    def work() -> None:
        def copy() -> None:
            os.setsid()  # in its own group: killing the parent's group does not reach it
            (tmp_path / "pid").write_text(str(os.getpid()))
            time.sleep(10 * PATIENCE)

        processes.fork(copy)
        awaited(tmp_path / "pid")
        os.kill(os.getpid(), signal.SIGKILL)

    child = Child(work)
    assert child.wait(PATIENCE) == -signal.SIGKILL
    assert ended(int(awaited(tmp_path / "pid")))


def test_only_the_end_of_an_output_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_text("x" * 10**6 + "\nthe last line\n")
    assert Tail(path.open("rb")).lines(2) == f"\n  {'x' * 300}\n  the last line"


@pytest.mark.parametrize("finishes", [True, False])
def test_a_trial_that_finishes_at_its_limit_is_not_ended(
    finishes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        watch = Watch(tmp_path, "worker", 0.0)

        def finish(*_: object) -> None:
            if finishes:
                watch.doing("nothing")
            (tmp_path / "worker.trace").write_text("the stack")

        signal.signal(signal.SIGUSR1, finish)
        watch.doing("trial")
        (tmp_path / "ready").write_text("ready")
        while True:
            time.sleep(PATIENCE)

    monkeypatch.setattr(supervisor, "GRACE", -1.0)  # the trial is late at once
    monkeypatch.setattr(supervisor, "ANSWER", PATIENCE)
    child = Child(work)
    awaited(tmp_path / "ready")
    supervisor.Guard(tmp_path, 0.0, PATIENCE, 2**40).look(child, finished=False)
    assert child.wait(0.0 if finishes else PATIENCE) == (None if finishes else -signal.SIGKILL)
    assert (tmp_path / "worker.ended").exists() is not finishes
    child.kill()
    child.wait()
