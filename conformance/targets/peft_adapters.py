"""Hugging Face PEFT's loader: `loraspec adapters conformance.targets.peft_adapters`.

`PeftModel.from_pretrained` wraps the layers of the model that it is given, which keep their names in it.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from conformance.adapters.model_changes import changes_of
from conformance.targets.wrapped_layer import library, version_of

with library("peft", "0.21.2", "pip install 'loraspec[peers]'"):
    from peft import PeftModel

CONFORMANCE: dict[str, Any] = {"name": "peft from_pretrained", "version": version_of("peft")}


def load_adapter_deltas(model: nn.Module, path: str) -> dict[str, Tensor]:
    """What PEFT's adapted model computes beside the model."""
    before = copy.deepcopy(model)
    return changes_of(before, PeftModel.from_pretrained(model, path).base_model.model.eval())
