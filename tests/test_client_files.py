"""The owner of the weights, the server and the client, each from files alone; damaged and missing tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import optimized
import reference
from reference import HybridFHEModel, LoraTraining, PeftConfig, get_remote_names
from reference.service.kept_tensors import FILE
from tests.support.server import serving

LABELS = torch.tensor([0, 1, 2, 0])
TOKENS = torch.arange(20).reshape(4, 5)


class Small(nn.Module):
    """A model with an embedding tied to its head, buffers of no state_dict, and a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("places", torch.arange(5), persistent=False)
        self.scale = torch.full((6,), 0.5)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.places[:, None] * self.scale
        return self.head(self.second(F.gelu(self.first(x)))).mean(1)


def training(package: Any = reference) -> LoraTraining:
    model = Small()
    package.apply_lora_to_linear_modules(model, PeftConfig(target_modules=["first", "second"], dim=2, alpha=4))
    made: LoraTraining = package.LoraTraining(model)
    return made


def split(trained: LoraTraining, server: Any = None, package: Any = reference) -> HybridFHEModel:
    names = [name for name in get_remote_names(trained) if "head" not in name]  # its weight is that of the embedding
    made: HybridFHEModel = package.HybridFHEModel(trained, names, server, "small")
    return made


def steps(hybrid: HybridFHEModel, mode: str) -> list[float]:
    """The losses of three steps; the optimiser is new."""
    trained: Any = hybrid.model
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    trained.update_training_parameters(torch.optim.AdamW(parameters, lr=0.05), loss_fn=F.cross_entropy)
    trained.toggle_run_optimizer()
    return [float(hybrid((TOKENS, LABELS), fhe=mode)[0].detach()) for _ in range(3)]


def owner(path: Path, package: Any = reference) -> list[float]:
    """Write both parts of a model, and return the losses of training in mode simulate from there."""
    torch.manual_seed(0)
    trained = training(package)
    trained.update_training_parameters(loss_fn=F.cross_entropy)
    hybrid = split(trained, package=package)
    hybrid.compile_model((TOKENS, LABELS))
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    losses = steps(hybrid, "simulate")
    trained.load_state_dict(before)
    trained.update_training_parameters()  # an optimiser's state has no weights here, but is the client's
    hybrid.save_and_clear_private_info(path)
    return losses


def client(path: Path, server: Any = None, package: Any = reference) -> HybridFHEModel:
    """A client that was built on the meta device."""
    with torch.device("meta"):
        trained = training(package)
    hybrid = split(trained, server, package)
    hybrid.load_client(path)
    return hybrid


def test_three_parties_share_only_files(tmp_path: Path) -> None:
    pytest.importorskip("seal")
    expected = owner(tmp_path / "owner", optimized)
    (tmp_path / "owner" / "server").rename(tmp_path / "server")
    with serving(tmp_path / "server") as server:
        losses = steps(client(tmp_path / "owner", server.address, optimized), "remote")
    assert losses == expected
    assert losses[0] > losses[-1]


def test_tensors_on_the_meta_device_are_filled_and_stay_what_they_were(tmp_path: Path) -> None:
    owner(tmp_path)
    with torch.device("meta"):
        trained = training()
    hybrid, model = split(trained), trained.inference_model
    trainable = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    assert all(parameter.is_meta for parameter in trained.parameters())
    hybrid.load_client(tmp_path)
    assert model.head.weight is model.embedding.weight
    left = {name for name, parameter in trained.named_parameters() if parameter.is_meta}
    assert left == {"inference_model.second.weight", "inference_model.second.base_layer.weight"}  # the first is local
    assert all(a is b for a, b in zip(trainable, [p for p in trained.parameters() if p.requires_grad], strict=True))
    assert model.places.tolist() == list(range(5))  # type: ignore[operator, union-attr]
    assert model.scale.tolist() == [0.5] * 6  # type: ignore[operator, union-attr]


def test_a_model_with_values_keeps_them(tmp_path: Path) -> None:
    owner(tmp_path)
    torch.manual_seed(1)
    trained = training()
    own = {name: value.clone() for name, value in trained.named_parameters() if "lora" in name or "embedding" in name}
    split(trained).load_client(tmp_path)
    assert all(torch.equal(trained.get_parameter(name), value) for name, value in own.items())
    assert len(own) == 5


def test_a_model_with_weights_loses_those_that_run_remotely(tmp_path: Path) -> None:
    owner(tmp_path)
    trained = training()
    split(trained).load_client(tmp_path)
    named = trained.inference_model.named_parameters()  # the first layer is not split: nothing before it is trained
    assert {name for name, held in named if held.is_meta} == {"second.weight", "second.base_layer.weight"}


def test_no_remote_weight_is_among_the_clients_files(tmp_path: Path) -> None:
    owner(tmp_path)
    from reference.files.tensor_file import decode

    held, _ = decode(tmp_path / "client" / "small" / FILE)
    adapters = {f"{name}.{part}.weight" for name in ("first", "second") for part in ("lora_A", "lora_B")}
    local = {"embedding.weight", "places", "scale", "first.weight", "first.bias", "second.bias"}
    assert {name.removeprefix("inference_model.") for name in held} == local | adapters


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    owner(tmp_path)
    path = tmp_path / "client" / "small" / FILE
    whole = path.read_bytes()

    def refused(change: Any = None) -> str:
        with torch.device("meta"):
            trained = training()
            if change:
                change(trained.inference_model)
        hybrid = split(trained)
        with pytest.raises(ValueError, match="small") as caught:
            hybrid.load_client(tmp_path)
        assert all(parameter.is_meta for parameter in trained.parameters())
        assert all(module.private_module is not None for module in hybrid.remote_modules.values())
        return str(caught.value)

    assert "kept.safetensors has none either: did the owner's model call it 'inference_model.embedding.weight'?" in (
        refused(lambda model: model.register_parameter("embeddings_weight", nn.Parameter(torch.empty(3))))
    )
    assert "inference_model.places is [5] but the model's is [6]" in (
        refused(lambda model: model.register_buffer("places", torch.arange(6), persistent=False))
    )
    path.write_bytes(whole[:-1])
    assert "is damaged: kept.safetensors is not a whole safetensors file" in refused()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is damaged: the tensors of kept.safetensors are not those that were saved" in refused()
    path.unlink()
    assert "has no values for inference_model.places, and kept.safetensors has none either" in refused()
    about = json.loads((path.parent / "model.json").read_text())
    assert sorted(about["modules"]) == sorted(split(training()).remote_modules)
