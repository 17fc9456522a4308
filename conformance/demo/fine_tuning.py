"""The task of `loraspec demo train`: a model without adapters, and windows of micro-batches of text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
from conformance.demo import llama, minilm
from conformance.demo.tasks import draws

ROWS, MICRO = 8, 4  # texts per window and per micro-batch; the last window has only one micro-batch
Batch = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class FineTuning:
    """A training run that several targets repeat.

    Attributes:
        name: name of the model.   about: the model and the data in a sentence.
        model: the frozen model without adapters; it is never changed, runs take copies.
        targets: patterns of the layers to adapt.
        windows: for each optimiser step, its micro-batches ``(x, labels)``.
        logits: function from the model's output to logits.   learning_rate: initial learning rate of AdamW.
        details: sizes, for the report.
    """

    name: str
    about: str
    model: nn.Module
    targets: list[str]
    windows: list[list[Batch]]
    logits: Callable[[Any], Tensor]
    learning_rate: float
    rank: int = 8
    alpha: int = 16
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """The names of the layers that the patterns choose."""
        matcher = reference.ModuleMatcher(target_modules=self.targets)
        parts = {name: name.rpartition(".") for name, m in self.model.named_modules() if isinstance(m, nn.Linear)}
        return [
            name
            for name, (prefix, _, last) in parts.items()
            if matcher.match(self.model.get_submodule(name), last, prefix)
        ]

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropy of a micro-batch: the sum over its texts of the mean over a text's tokens."""
        x, labels = batch
        logits = self.logits(model(**x))
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum") / labels[0].numel()


def prepared(name: str, steps: int, seed: int) -> FineTuning:
    """The task for a model, `minilm` or `llama`, with `steps` windows; `seed` determines all random draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"minilm": _minilm, "llama": _llama}[name](steps)


def _minilm(steps: int) -> FineTuning:
    tokenizer, encoder = minilm.loaded()
    texts = [(text, label) for label, package in enumerate(minilm.PACKAGES) for text in minilm.docstrings(package)]
    model = minilm.Classifier(encoder, len(minilm.PACKAGES))
    nn.init.normal_(model.head_weight, std=0.05)  # frozen: only the adapters learn

    def batch(indices: list[int]) -> Batch:
        return minilm.batch(tokenizer, [texts[i][0] for i in indices], [texts[i][1] for i in indices])

    return FineTuning(
        name="minilm",
        about="all-MiniLM-L6-v2 (6 layers of 384, mean pooling, a fixed random head), LoRA of rank 8 on the linear "
        f"layers of attention, learning to tell the docstrings of {' and '.join(minilm.PACKAGES)} apart",
        model=model.requires_grad_(False).train(),
        targets=minilm.ADAPTED,
        windows=[[batch(part) for part in parts] for parts in _windows(len(texts), steps)],
        logits=lambda output: output,
        learning_rate=0.0005,
        details={"texts": len(texts), "tokens": minilm.TOKENS},
    )


def _llama(steps: int) -> FineTuning:
    sequences = llama.sequences()

    def batch(indices: list[int]) -> Batch:
        rows = sequences[indices]
        return {"input_ids": rows[:, :-1]}, rows[:, 1:]

    return FineTuning(
        name="llama",
        about="a Llama of 2 layers of 64 with random weights, LoRA of rank 8 on all its linear layers, learning to "
        f"predict the next byte of the docstrings of {' and '.join(minilm.PACKAGES)}",
        model=llama.model(),
        targets=["*_proj", "lm_head"],
        windows=[[batch(part) for part in parts] for parts in _windows(len(sequences), steps)],
        logits=lambda output: output.logits,
        learning_rate=0.002,  # at five times as much training amplifies rounding, see `target_comparison.BAND`
        details={"texts": len(sequences), "tokens": llama.BYTES},
    )


def _windows(size: int, steps: int) -> list[list[list[int]]]:
    """The indices of each window by micro-batch; the last window has only one, as at the end of an epoch."""
    windows = [[part.tolist() for part in torch.split(rows, MICRO)] for rows in draws(size, ROWS, steps)]
    return [*windows[:-1], windows[-1][:1]]
