"""Run functions with interpreted Triton kernels; the interpreter must be switched on before Triton is imported."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch

from tests.support.commands import python

ROOT = Path(__file__).parents[2]


def interpreted(check: Callable[[], None]) -> None:
    """Run a module's function in this process if it interprets kernels, otherwise in a new process."""
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
