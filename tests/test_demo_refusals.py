"""`loraspec demo private-training`: refused options, and the message when a run fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import reference
from conformance import cli
from conformance.demo import session

TOY = ("--backend", "toy")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "bert"], "unknown model 'bert': expected one of mlp, minilm, llama"),
        (["--modes", "torch,fast"], "unknown mode 'fast': expected one of torch, disable, simulate, execute, remote"),
        (["--modes", ""], "unknown mode ''"),
        (["--backend", "rot13"], "unknown backend 'rot13': expected one of seal, exact, fast, toy"),
        (["--private-key", "key.pem"], "--certificate is missing: TLS needs --certificate and --private-key"),
        (["--certificate", "c.pem", "--private-key", "k.pem"], "--certificate 'c.pem' is no file: expected one in PEM"),
        (["--implementation", "nowhere"], "implementation 'nowhere' does not import: No module named 'nowhere'"),
        (["--implementation", "json"], "implementation 'json' has no HybridFHEModel, LoraTraining"),
    ],
)
def test_a_usage_error_prints_one_line_and_leaves_no_folder(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert cli.main(["demo", "private-training", "--out", str(out), "--model", "mlp", *options]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_zero_steps_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", "private-training", "--out", str(tmp_path), "--steps", "0"])
    assert "'0' is no number of steps" in capsys.readouterr().err


def test_an_output_path_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "file"
    out.write_text("mine")
    assert cli.main(["demo", "private-training", "--out", str(out)]) == 2
    assert f"cannot write reports to {str(out)!r}" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_missing_packages_are_named_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, missing = importlib.util.find_spec, ("sklearn", "uvicorn", "concrete_ml_extensions")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else there(name))
    assert cli.main(["demo", "private-training", "--out", str(tmp_path / "out"), "--model", "mlp", *TOY]) == 2
    assert capsys.readouterr().err == (
        "loraspec: the demo needs sklearn, concrete_ml_extensions, uvicorn: pip install 'loraspec[demo,fhe,remote]'\n"
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        reference.EncryptionError("encrypted inputs came with a wrong checksum:\nit was cut off"),
        reference.RemoteError("evaluate mlp/fc at http://127.0.0.1:9: cannot connect"),
    ],
    ids=["encryption", "server"],
)
def test_a_failure_of_encryption_or_server_prints_one_line_and_exits_1(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(session._Session, "model", fail)
    monkeypatch.setattr(session, "check_installed", lambda _: None)
    out = tmp_path / "new" / "out"
    assert cli.main(["demo", "private-training", "--out", str(out), "--model", "mlp", "--modes", "execute"]) == 1
    assert capsys.readouterr().err == f"loraspec: the demo stopped: {' '.join(str(error).split())}\n"
    assert not any(tmp_path.iterdir())
