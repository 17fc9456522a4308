"""Seeding torch's generators, once for each case and layer."""

from __future__ import annotations

from typing import Any

import torch


def seed_torch(seed: int) -> None:
    """Seed like `torch.manual_seed`, at a hundredth of its cost.

    `torch.manual_seed` records the stack for each kind of missing accelerator, which takes a millisecond inside a
    test, and first imports torch's compiler, which takes seconds.
    """
    torch.default_generator.manual_seed(seed)
    cuda: Any = torch.cuda  # untyped
    if cuda.is_initialized():
        cuda.manual_seed_all(seed)
