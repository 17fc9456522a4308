"""Every path through the optimized layer is right at the sizes of the CPU benchmark."""

from __future__ import annotations

import sys
from unittest import mock

import pytest
import torch

from tests.campaigns import paths
from tests.support.commands import TARGETS
from tests.support.interpreter import interpreted


def every_path() -> None:
    """For every path the worst errors of y, dX, dA and dB are within budget, and they are not all zero."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch.object(sys, "path", [str(TARGETS), *sys.path]):
            found = dict(paths.verdicts(dtypes=("bfloat16",)))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 2 * len(paths.LAYERS)
    assert all(0 < float(verdict) <= 1 for verdict in found.values()), found


def test_every_path_is_right_at_benchmarked_sizes() -> None:
    interpreted(every_path)


@pytest.mark.parametrize(("verdict", "code"), [("0.500", 0), ("FAIL y[0, 0]: got 1, want 2", 1)])
def test_the_command_prints_each_verdict_and_fails_if_one_does(
    verdict: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["paths", "--dtype", "bfloat16"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(paths, "verdicts", lambda *_: iter([("64x256x256 r8 bfloat16", verdict)]))
    assert paths.main() == code
    assert capsys.readouterr().out.split(maxsplit=3) == ["64x256x256", "r8", "bfloat16", f"{verdict}\n"]


def test_the_command_asks_for_the_interpreter_if_it_is_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "")
    monkeypatch.setattr(sys, "argv", ["paths"])
    with pytest.raises(SystemExit, match="2"):
        paths.main()
    assert "set TRITON_INTERPRET=1: without it no kernel runs on a CPU" in capsys.readouterr().err
