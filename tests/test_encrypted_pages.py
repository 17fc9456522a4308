"""The pages on encrypted training: the recipe trains as it says, and the other code on them runs."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from reference.encrypted.answer_check import PRIME
from reference.encrypted.packed_noise import SEAL
from reference.encrypted.polynomial_layout import MOST_OUTPUTS
from reference.files.tensor_file import decode
from tests.support.page_reader import BLOCK, compare
from tests.support.server import ROOT, serving

FOLDER = ROOT / "reference" / "encrypted"
PAGES = ("README.md", "RECIPE.md", "SECURITY.md")
TOKEN = "an-unguessable-token-0123456789"


def blocks(page: str) -> list[tuple[str, str, str]]:
    return BLOCK.findall((FOLDER / page).read_text(encoding="utf-8"))


@contextmanager
def started_from(folder: Path) -> Iterator[None]:
    """Run scripts in a folder, whose modules they import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "model", raising=False)
        yield
        sys.modules.pop("model", None)


def said(folder: Path, command: str) -> str:
    """The output of ``python SCRIPT ARGUMENT…`` in a folder, which runs in this process."""
    _, script, *arguments = shlex.split(command)
    printed = io.StringIO()
    with started_from(folder), redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(script, run_name="__main__")
    return printed.getvalue()


def simulated_adapters(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    """The adapters after as many steps in mode simulate, from the owner's model."""
    with started_from(folder):
        names = runpy.run_path("model.py")
    torch.manual_seed(0)
    hybrid: Any = names["split"]()
    data = torch.randint(50, (8, 6)), torch.randint(3, (8,))
    training = hybrid.model
    training.update_training_parameters(loss_fn=F.cross_entropy)
    hybrid.compile_model(data)
    optimizer = torch.optim.AdamW([p for p in training.parameters() if p.requires_grad], lr=0.02)
    training.update_training_parameters(optimizer, loss_fn=F.cross_entropy, training_args={"max_grad_norm": 1.0})
    training.toggle_run_optimizer()
    generator = torch.Generator().manual_seed(1)
    batch = torch.randint(50, (8, 6), generator=generator), torch.randint(3, (8,), generator=generator)
    for _ in range(steps):
        hybrid(batch, fhe="simulate")
    return {name: p.detach() for name, p in training.inference_model.named_parameters() if "lora" in name}


@pytest.mark.long
def test_the_recipe_trains_and_goes_on_as_in_mode_simulate(tmp_path: Path) -> None:
    """Owner, server and client run in the order of the page; between them there are only files and one address."""
    pytest.importorskip("seal")
    for file in (ROOT / "tests" / "support" / "certificates").iterdir():
        shutil.copy(file, tmp_path)
    for name in ("token", "tokens"):
        (tmp_path / name).write_text(TOKEN)
    found, consoles = blocks("RECIPE.md"), []
    for kind, name, text in found:
        if kind == "python":
            (tmp_path / name).write_text(text, encoding="utf-8")
        else:
            consoles += [part.partition("\n") for part in re.split(r"(?m)^\$ ", text)[1:]]
    (owner, _, names), (serve, _, address), *client = consoles
    compare(said(tmp_path, owner), names)
    with started_from(tmp_path):
        _, command, models, _, port, *options = shlex.split(serve)
        assert (command, models) == ("serve", "split/server")
        options = [str(tmp_path / word) if (tmp_path / word).is_file() else word for word in options]
        with serving(tmp_path / models, *options) as server:
            compare(server.log[0], address.replace(port, str(server.port)))
            script = tmp_path / "client.py"
            script.write_text(script.read_text().replace(port, str(server.port)))
            for line, _, expected in client:
                compare(said(tmp_path, line), expected)
    assert len(client) == 2
    steps = sum(text.count("step") for _, _, text in client)
    trained, _ = decode(tmp_path / "adapter" / "adapter_model.safetensors")
    expected = simulated_adapters(tmp_path, steps)
    assert {name.removeprefix("base_model.model.") for name in trained} == set(expected)
    assert all(torch.equal(trained[f"base_model.model.{name}"], value) for name, value in expected.items())


def test_the_code_on_the_page_on_security_runs() -> None:
    pytest.importorskip("seal")
    found = [text for kind, _, text in blocks("SECURITY.md") if kind == "python"]
    assert len(found) == 1
    exec(compile(found[0], "SECURITY.md", "exec"), {})


def test_the_numbers_on_the_page_on_security_are_those_of_the_code() -> None:
    page = (FOLDER / "SECURITY.md").read_text(encoding="utf-8")
    n, (first, second) = SEAL.polynomial_size, SEAL.dropped
    assert f"polynomials of n = {n} coefficients" in page
    assert f"one prime q = {SEAL.modulus} ({SEAL.modulus.bit_length()} bits)" in page
    assert f"= 21.5·Σ|W| + {2 ** (first - 1) + n * 2 ** (second - 1):,}" in page
    assert f"Σ|W| <= {SEAL.largest_row:,}" in page
    assert f"{-(-SEAL.largest_row // 128):,} features" in page
    assert f"Σ W² = {SEAL.largest_squares(SEAL.largest_row) / 1e10:.1f}·10¹⁰" in page
    assert f"at most {MOST_OUTPUTS} outputs" in page
    assert PRIME == 2**61 - 1


@pytest.mark.parametrize("page", PAGES)
def test_a_page_links_and_names_what_is_there(page: str) -> None:
    text = (FOLDER / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (FOLDER / link).exists(), link
    for file in re.findall(r"`((?:tests|reference|conformance)/[\w/]+\.py)`", text):
        assert (ROOT / file).exists(), file
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
