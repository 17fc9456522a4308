"""An adapter and a training run on disk, in the files of the reference; loading creates layers of `optimized`."""

import os
from collections.abc import Collection

from torch import nn

from optimized.experts import GroupedExpertsLoRA
from optimized.model import patch_linear_module
from reference import PeftConfig
from reference.checkpoint import load_training, read_adapter, save_adapter, save_training

__all__ = ["load_adapter", "load_training", "save_adapter", "save_training"]


def load_adapter(model: nn.Module, path: str | os.PathLike[str], *, ignored_fields: Collection[str] = ()) -> PeftConfig:
    """`reference.load_adapter`; a model without adapters gets the layers of `optimized`."""
    return read_adapter(model, path, patch_linear_module, ignored_fields, GroupedExpertsLoRA)
