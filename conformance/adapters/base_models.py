"""The tiny base models of the golden adapters: classes of transformers, whose values follow from the parameters' names.

Every value is a multiple of 1/16 in [-1, 1], so that each dtype holds it exactly.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.errors import UsageError, known
from conformance.numerics.formats import Array

if TYPE_CHECKING:
    from torch import nn

_SMALL = {"vocab_size": 12, "bos_token_id": 0, "eos_token_id": 1, "architectures": None}
_LLAMA = _SMALL | {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
}
# By name the config class, the model class and the options of the config.
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LLAMA | {"attention_bias": True}),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", _LLAMA | {"tie_word_embeddings": True}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        _SMALL | {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2},
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        _LLAMA | {"num_hidden_layers": 1, "intermediate_size": 6, "num_local_experts": 3, "num_experts_per_tok": 2},
    ),
}


def values_of(base: str, parameter: str, shape: tuple[int, ...]) -> Array:
    """The values of a parameter of a base model, as float64."""
    return dyadic(f"{base} {parameter}", shape, 16)


def dyadic(seed: str, shape: tuple[int, ...], steps: int) -> Array:
    """Multiples of 1/steps in [-1, 1], drawn from a seed; Python keeps these draws the same in all versions."""
    source = random.Random(seed)
    drawn = [int(source.random() * (2 * steps + 1)) - steps for _ in range(int(np.prod(shape)))]
    return np.array(drawn, dtype=np.float64).reshape(shape) / steps


def base_model(base: str) -> nn.Module:
    """A base model in float32 and evaluation mode.

    Raises:
        UsageError: for an unknown name; if transformers is not installed.
    """
    import torch

    known([base], BASES, "base model")
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UsageError("golden adapters need models of transformers: pip install 'loraspec[peers]'") from error
    config_class, model_class, options = BASES[base]
    config = getattr(transformers, config_class)(**options | {"architectures": [model_class]})
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(values_of(base, name, tuple(parameter.shape))))
    return model.eval()
