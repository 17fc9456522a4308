"""Seeding torch's generators, once for each case and layer."""

from __future__ import annotations

from typing import Any

import torch


def seed_torch(seed: int) -> None:
    """Do what `torch.manual_seed` does, at a hundredth of its cost.

    That one writes down the stack for each kind of accelerator that is not there, which takes a millisecond inside a
    test, and imports torch's compiler first, which takes seconds.
    """
    torch.default_generator.manual_seed(seed)
    cuda: Any = torch.cuda  # untyped
    if cuda.is_initialized():
        cuda.manual_seed_all(seed)
