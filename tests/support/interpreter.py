"""Running what needs Triton's kernels interpreted, which has to be set before Triton is imported."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch

from tests.support.commands import python

ROOT = Path(__file__).parents[2]


def interpreted(check: Callable[[], None]) -> None:
    """Run a function of a module here, where kernels are interpreted already, and otherwise in a process of its own."""
    if _is_interpreting():
        with torch.random.fork_rng(devices=[]):
            check()
        return
    call = f"from {check.__module__} import {check.__qualname__} as check; check()"
    ended = python("-c", call, cwd=ROOT, TRITON_INTERPRET="1")
    assert ended.returncode == 0, ended.stderr


@functools.cache
def _is_interpreting() -> bool:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    from optimized import kernels

    return kernels.INTERPRETED
