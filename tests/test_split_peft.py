"""Split models with PEFT's adapters: DoRA, merging after the split, and weights that were cleared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reference import HybridFHEModel, LoraTraining, get_remote_names

peft = pytest.importorskip("peft")
BATCH = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


class Chain(nn.Module):
    """Three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def adapted(*, dora: bool = False) -> Any:
    """PEFT's model of a chain, whose adapters are not zero."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["a", "b", "c"], use_dora=dora, init_lora_weights=False)
    return peft.get_peft_model(Chain(), config)


def split(model: nn.Module, skipped: int = 1) -> HybridFHEModel:
    training = LoraTraining(model, loss_fn=nn.functional.cross_entropy, n_layers_to_skip_for_backprop=skipped)
    return HybridFHEModel(training, get_remote_names(training), "http://127.0.0.1:9")


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]


@pytest.mark.parametrize("skipped", [0, 1])
def test_dora_trains(skipped: int) -> None:
    model, whole = adapted(dora=True), adapted(dora=True)
    hybrid = split(model, skipped)
    nn.functional.cross_entropy(whole(BATCH[0]), BATCH[1]).backward()
    hybrid(BATCH, fhe="torch")
    torch.testing.assert_close(gradients(model), gradients(whole))
    hybrid.compile_model(BATCH, n_bits=12)
    loss, losses = nn.functional.cross_entropy(whole(BATCH[0]), BATCH[1]), []
    for mode in ("disable", "execute"):
        losses.append(hybrid(BATCH, fhe=mode)[0].detach())
    assert torch.equal(*losses)
    torch.testing.assert_close(losses[0], loss.detach(), rtol=0.02, atol=0.02)


def test_weights_that_dora_needs_stay(tmp_path: Path) -> None:
    hybrid = split(adapted(dora=True))
    hybrid.compile_model(BATCH)
    with pytest.raises(
        RuntimeError, match=r"model\.a is PEFT's Linear with DoRA, which needs its weight here: nothing"
    ):
        hybrid.save_and_clear_private_info(tmp_path)
    assert not list(tmp_path.iterdir())
    hybrid(BATCH, fhe="disable")


@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_adapter_computes_here_but_not_remotely(dora: bool) -> None:
    model = adapted(dora=dora)
    hybrid = split(model)
    expected = model(BATCH[0])
    model.merge_adapter()
    torch.testing.assert_close(model(BATCH[0]), expected)
    said = r"model\.a is PEFT's Linear, merged into a weight that runs remotely: .*; unmerge it first"
    with pytest.raises(RuntimeError, match=said):
        hybrid.compile_model(BATCH)
    model.unmerge_adapter()
    hybrid.compile_model(BATCH)
    hybrid(BATCH, fhe="disable")
    model.merge_adapter()
    with pytest.raises(RuntimeError, match=said):
        hybrid(BATCH, fhe="disable")
    model.unmerge_adapter()
    hybrid.compile_model(BATCH)
    hybrid(BATCH, fhe="execute")


def test_merging_into_cleared_weights_is_refused(tmp_path: Path) -> None:
    model: Any = adapted()
    hybrid = split(model)
    hybrid.compile_model(BATCH)
    hybrid.save_and_clear_private_info(tmp_path)
    with pytest.raises(AttributeError, match=r"model\.a\.base_layer has no weight here, because save_and_clear"):
        model.merge_adapter()
    model.base_model.model.b.merge()  # PEFT adds to a weight on the meta device without an error
    with pytest.raises(RuntimeError, match=r"model\.b is PEFT's Linear, merged into a weight that runs remotely"):
        hybrid(BATCH, fhe="remote")
