"""A split model where something went wrong or is missing: repeated saving, unused modules, clients without weights."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reference import HybridFHEModel, LoraTraining, PeftConfig, apply_lora_to_linear_modules, get_remote_names
from reference.service import product_progress
from tests.test_splitting import LABELS, X, split, training


class Attention(nn.Module):
    """A layer whose first products take the input itself, as q, k and v take the embeddings of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(torch.softmax(self.q(x) @ self.k(x).T, -1) @ self.v(x))[:, :3]


def attention(**options: Any) -> HybridFHEModel:
    torch.manual_seed(0)
    model = Attention()
    apply_lora_to_linear_modules(model, PeftConfig(target_modules=["*"], dim=2, alpha=4))
    trained = LoraTraining(model)
    trained.update_training_parameters(loss_fn=nn.functional.cross_entropy)
    return HybridFHEModel(trained, get_remote_names(trained), "http://127.0.0.1:9", **options)


def test_backward_modules_without_a_gradient_are_left_out_of_static_quantisation(tmp_path: Path) -> None:
    hybrid = attention()
    hybrid.compile_model((X, LABELS), use_dynamic_quantization=False)
    unused = [name for name, module in hybrid.remote_modules.items() if module.is_unused]
    assert unused == [f"inference_model.{name}.base_layer.backward_module" for name in ("k", "v")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "inference_model.o.* lie outside the calibrated range")  # quantised before
        loss, _ = hybrid((X, LABELS), fhe="simulate")
    assert loss.isfinite()
    hybrid.set_fhe_mode("simulate")
    with pytest.raises(RuntimeError, match=r"k\.base_layer\.backward_module got no gradient when compile_model took"):
        hybrid.remote_modules[unused[0]](torch.ones(2, 6))
    hybrid.save_and_clear_private_info(tmp_path)
    other = attention()
    other.load_client(tmp_path)
    assert [name for name, module in other.remote_modules.items() if module.is_unused] == unused


def test_static_quantisation_without_any_gradient_is_refused() -> None:
    hybrid = attention()
    hybrid._run_once = lambda x: hybrid.model.inference_model(x[0])  # type: ignore[method-assign, operator, union-attr]
    with pytest.raises(RuntimeError, match="has seen no input to take its range from"):
        hybrid.compile_model((X, LABELS), use_dynamic_quantization=False)


def test_saving_again_after_an_optimiser_held_a_weight(tmp_path: Path) -> None:
    hybrid = split()
    held = [hybrid.model.inference_model[2].weight]  # type: ignore[index, union-attr]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"the weights were cleared from the model, but .* remain, held by list"):
            hybrid.save_and_clear_private_info(tmp_path)
    held.clear()
    hybrid.save_and_clear_private_info(tmp_path)
    with pytest.raises(RuntimeError, match="has no compiled weight to save"):
        hybrid.save_and_clear_private_info(tmp_path / "other")


def test_saving_again_after_the_disk_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    hybrid, real, left = split(), np.savez, [6]

    def full(*args: Any, **kwargs: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        hybrid.save_and_clear_private_info(tmp_path)
    assert not [entry for side in ("server", "client") for entry in (tmp_path / side).glob("*")]
    assert hybrid((X, LABELS), fhe="disable")[0].isfinite()  # nothing was cleared
    hybrid.save_and_clear_private_info(tmp_path)
    assert (tmp_path / "server" / "model" / "model.json").exists()


def test_a_client_that_never_had_the_weights_loads_its_part(tmp_path: Path) -> None:
    split().save_and_clear_private_info(tmp_path)
    with torch.device("meta"):
        trained = training()
    hybrid = HybridFHEModel(trained, get_remote_names(trained), "http://127.0.0.1:9")
    hybrid.load_client(tmp_path)
    hybrid.set_fhe_mode("remote")


def test_the_bits_of_single_modules() -> None:
    trained = training()
    names = get_remote_names(trained)
    hybrid = HybridFHEModel(trained, names)
    hybrid.compile_model((X, LABELS), n_bits={names[0]: 4})
    bits: list[Any] = [module.quantized.n_bits for module in hybrid.remote_modules.values() if module.quantized]
    assert bits == [4] + [8] * (len(names) - 1)
    with pytest.raises(ValueError, match=r"n_bits names 'inference_model.2.base_layer.forward', which does not run"):
        hybrid.compile_model((X, LABELS), n_bits={"inference_model.2.base_layer.forward": 4})


def test_an_invalid_address_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="address 'server:8000': expected http://host:port"):
        HybridFHEModel(training(), ["inference_model.0"], "server:8000")


def test_progress_is_logged_in_rows_and_bytes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(product_progress.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), product_progress.shown_progress("fc", 4, 1) as advance:
        for seconds in (5.0, 11.0, 12.0, 30.0):
            now[0] = seconds
            advance(1, 200_000, 1000)
    assert [record.getMessage() for record in caplog.records] == [
        "fc: 2 of 4 rows, 0.4 MB up, 2.0 kB down, 11.0 s, 11 s left",
        "fc: 4 of 4 rows, 0.8 MB up, 4.0 kB down, 30.0 s, 0 s left",
    ]


def test_products_that_could_wrap_are_refused_with_the_layers_own_size() -> None:
    hybrid = split()
    said = r"model\.2\.base_layer\.forward_module: n_bits = 14 and 8 features allow products up to \d+"  # [7, 8]
    with pytest.raises(ValueError, match=said):
        hybrid.compile_model((X, LABELS), n_bits=14)
