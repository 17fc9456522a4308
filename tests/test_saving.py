"""A split model is saved completely or not at all, and only under a valid file name."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference.encrypted.answer_check import AnswerCheck, weight_digest
from reference.encrypted.noise import TOY
from reference.quantization import QuantizedLinear
from reference.service import deployment
from tests.support.commands import python
from tests.support.server import PlainBackend


class _Compiled:
    """A stand-in for a compiled `RemoteModule`, with the attributes that saving reads."""

    def __init__(self) -> None:
        self.quantized = QuantizedLinear(torch.randn(3, 4), torch.randn(3), 8)
        weight: Any = self.quantized.weight
        self.answer_check, self.digest = AnswerCheck.of(weight, torch.zeros(3)), weight_digest(weight)


def _save(path: Path, name: str = "m") -> None:
    modules: Any = {"fc": _Compiled()}
    deployment.save(path, name, modules, TOY)


def test_a_failed_save_leaves_no_model_and_a_saved_model_is_not_overwritten(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="no space left"):
            _save(tmp_path)
    assert not list(tmp_path.rglob("*m*"))
    _save(tmp_path)
    assert sorted(p.name for p in (tmp_path / "server" / "m").iterdir()) == ["0.npz", "model.json"]
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "server" / "m").stat().st_mode == (tmp_path / "usual").stat().st_mode
    with np.load(tmp_path / "server" / "m" / "0.npz") as held:
        assert held.files == ["weight"]
    with pytest.raises(FileExistsError, match="server/m exists already"):
        _save(tmp_path)


CUT_OFF = """
import os, signal, sys, pathlib
import reference.service.deployment as deployment
from tests.test_saving import _save
deployment.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
_save(pathlib.Path(sys.argv[1]))
"""


def test_a_kill_while_saving_leaves_no_model_to_serve(tmp_path: Path) -> None:
    from reference.service.worker import load

    ended = python("-c", CUT_OFF, str(tmp_path), cwd=Path(__file__).parents[1])
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [entry.name[:3] for entry in (tmp_path / "server").iterdir()] == [".m-"]
    with pytest.raises(ValueError, match="holds no model"):
        load(tmp_path / "server", PlainBackend)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a", "a b", "ä", "a\n", "x" * 101])
def test_an_invalid_model_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected up to 100 letters"):
        _save(tmp_path, name)
    assert not list(tmp_path.iterdir())
