"""A Llama of 2 layers with random weights, learning to predict the next byte of docstrings; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.demo import minilm
from conformance.demo.tasks import Task, draws

BYTES = 32  # of each text
BATCH = 8


def llama(implementation: Any, steps: int, seed: int) -> Task:
    """The task of the Llama; arguments as for `conformance.demo.tasks.mlp`."""
    rows = sequences()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = model()
        config = implementation.PeftConfig(target_modules=["*_proj"], dim=8, alpha=16)
        adapted = implementation.apply_lora_to_linear_modules(made, config)
        batches = [({"input_ids": rows[i][:, :-1]}, rows[i][:, 1:]) for i in draws(len(rows), BATCH, steps)]
    return Task(
        name="llama",
        about=f"a Llama of 2 layers of 64 with random weights, LoRA of rank 8 on its {adapted} linear layers but the "
        f"head; trained to predict the next byte of the docstrings of {' and '.join(minilm.PACKAGES)}",
        model=made,
        batches=batches,
        learning_rate=0.01,
        loss=token_loss,
        details={"batch": BATCH, "tokens": BYTES, "rank": 8, "texts": len(rows)},
        seed=seed,
    )


def model() -> Any:
    """The model, frozen, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
        max_position_embeddings=BYTES,
        use_cache=False,
    )
    return LlamaForCausalLM(config).requires_grad_(False).train()


def sequences() -> Tensor:
    """The texts as bytes, int64 [texts, BYTES + 1]."""
    text = "\n".join(text for package in minilm.PACKAGES for text in minilm.docstrings(package)).encode()
    return torch.tensor(list(text[: len(text) // (BYTES + 1) * (BYTES + 1)])).reshape(-1, BYTES + 1)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy over all tokens: logits [M, T, classes], labels [M, T]."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
