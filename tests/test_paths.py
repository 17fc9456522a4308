"""Every path through the optimized layer is right at the sizes that the CPU's benchmark takes."""

from __future__ import annotations

from pathlib import Path

from tests.commands import python
from tests.paths import LAYERS

ROOT = Path(__file__).parent.parent


def test_every_path_is_right_at_benchmarked_sizes() -> None:
    ended = python("-m", "tests.paths", "--dtype", "bfloat16", cwd=ROOT, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(lines) == 2 * len(LAYERS)
    assert all(0 < float(line.split()[-1]) <= 1 for line in lines), ended.stdout


def test_without_an_interpreter_it_says_what_is_missing() -> None:
    ended = python("-m", "tests.paths", cwd=ROOT, TRITON_INTERPRET="")
    assert ended.returncode == 2
    assert "set TRITON_INTERPRET=1: without it no kernel runs on a CPU" in ended.stderr
