"""The memory that each clause needs: `python -m tests.support.footprint optimized --group linear`.

Each clause is examined on a few cases in its own fork, which may map at most `MAPPED` MiB of writable memory; a clause
that needs more fails. The peak of resident memory includes Python, torch and the suite.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
from pathlib import Path

import torch

from conformance.judgement.result import ANY_DTYPE, PASS
from conformance.run.case_search import Examination
from conformance.run.execution import ONE_THREAD
from conformance.run.profiles import PROFILES
from conformance.run.trial import loaded
from conformance.specification.clause import Clause, load_all
from conformance.specification.groups import groups
from conformance.target.target import Target

RESIDENT, MAPPED = 2 * 2**10, 4 * 2**10  # most MiB for a clause, with a frugal target, including imports
FEW = dataclasses.replace(PROFILES["quick"], volume=3, shrinks=0)


def memory(name: str) -> int:
    """Return a value of /proc/self/status in MiB; the file has kB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) // 2**10


def needed(clause: Clause, target: Target, mapped: int = MAPPED) -> tuple[int, list[str]] | None:
    """Return the peak memory of a clause's examination in MiB, with its failures; None if the process ended early.

    Args:
        mapped: MiB of memory that may be mapped for writing.
    """
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(send, json.dumps(_examined(clause, target, mapped)).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as stream:
        written = stream.read()
    os.waitpid(child, 0)
    return tuple(json.loads(written)) if written else None


def _examined(clause: Clause, target: Target, mapped: int) -> tuple[int, list[str]]:
    torch.set_num_threads(1)  # a fork does not have its parent's threads
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    resource.setrlimit(resource.RLIMIT_DATA, (mapped * 2**20, resource.RLIM_INFINITY))
    results = [
        Examination(clause, subject, dtype, FEW).run()
        for subject in target.subjects(clause)
        for dtype in clause.dtypes or (ANY_DTYPE,)
    ]
    return memory("VmHWM"), [f"{r.subject} {r.dtype}: {r.message}" for r in results if r.status != PASS]


def main() -> int:
    """Print a line for each clause; return 1 if one fails or needs more memory than allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--group", nargs="+", choices=groups(), default=list(groups()))
    chosen = parser.parse_args()
    target, wrong = loaded(chosen.target, "cpu"), 0
    for clause in load_all().values():
        if clause.group not in chosen.group or not target.subjects(clause):
            continue
        found = needed(clause, target)
        most, failed = found or (0, ["its process ended"])
        wrong += most > RESIDENT or bool(failed)
        print(f"{clause.id:24} {most:6d} MiB", "  TOO MUCH" * (most > RESIDENT), *failed, flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    os.environ.update(ONE_THREAD)
    sys.exit(main())
