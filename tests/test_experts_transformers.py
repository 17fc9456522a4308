"""Adapted experts of transformers' own models, beside the same model whose weights include the update."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import optimized
import reference

transformers = pytest.importorskip("transformers")
PACKAGES = pytest.mark.parametrize("package", [reference, optimized], ids=["reference", "optimized"])
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 6,
    "moe_intermediate_size": 6,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_latent_size": None,
}
CLASSES = {
    "mixtral": "MixtralExperts",
    "qwen3_moe": "Qwen3MoeExperts",
    "deepseek_v3": "DeepseekV3Experts",
    "gpt_oss": "GptOssExperts",
    "nemotron_h": "NemotronHExperts",
}


def experts_of(kind: str, dtype: torch.dtype) -> Any:
    """A module of experts of one architecture, with random weights."""
    known = vars(type(transformers.AutoConfig.for_model(kind)))
    config = transformers.AutoConfig.for_model(kind)
    for key, value in SIZES.items():
        if hasattr(config, key) or key in known:
            setattr(config, key, value)
    config._experts_implementation = "eager"
    modeling = pytest.importorskip(f"transformers.models.{kind}.modeling_{kind}")
    torch.manual_seed(0)
    module = getattr(modeling, CLASSES[kind])(config).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


@PACKAGES
@pytest.mark.parametrize("kind", CLASSES)
def test_adapted_experts_equal_experts_with_the_update_in_their_weights(package: Any, kind: str) -> None:
    module = experts_of(kind, torch.float64)
    plain = copy.deepcopy(module)
    alpha = getattr(module, "alpha", None)
    adapted = package.patch_moe_module(module, 3, 6)
    assert getattr(adapted, "alpha", None) == alpha
    x, index, p = torch.randn(7, 8, dtype=torch.float64), torch.randint(0, 3, (7, 2)), torch.rand(7, 2).double()
    torch.testing.assert_close(adapted(x, index, p), plain(x, index, p))
    with torch.no_grad():
        for name, B in adapted.lora_B.items():
            B.normal_(std=0.3)
            update = adapted.scale * B @ adapted.lora_A[name]
            getattr(plain, name).add_(update.mT if module.is_transposed else update)
    leaves = []
    for model in (adapted, plain):
        tokens, weights = x.clone().requires_grad_(), p.clone().requires_grad_()
        y = model(tokens, index, weights)
        y.square().sum().backward()
        leaves.append((y, tokens.grad, weights.grad))
    for ours, theirs in zip(*leaves, strict=True):
        torch.testing.assert_close(ours, theirs)
    for name, B in adapted.lora_B.items():  # the gradients of the update, through the gradient of the whole weight
        whole = getattr(plain, name).grad
        whole = whole.mT if module.is_transposed else whole
        torch.testing.assert_close(B.grad, adapted.scale * whole @ adapted.lora_A[name].mT)
        torch.testing.assert_close(adapted.lora_A[name].grad, adapted.scale * B.mT @ whole)
        assert not adapted.lora_A[name].grad[3].any(), "the last expert is idle"
    adapted.merge()
    torch.testing.assert_close(adapted(x, index, p), plain(x, index, p))
