"""transformers' integration of PEFT, `load_adapter`: `loraspec adapters conformance.targets.transformers_adapters`."""

from __future__ import annotations

from typing import Any

from conformance.targets.wrapped_layer import library, version_of

with library("transformers", "5.23.0", "pip install 'loraspec[peers]'"):
    from transformers import PreTrainedModel

CONFORMANCE: dict[str, Any] = {"name": "transformers load_adapter", "version": version_of("transformers")}


def load_adapter(model: Any, path: str) -> None:
    """Load an adapter into a model, in place."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"got a {type(model).__name__}: expected a PreTrainedModel")
    model.load_adapter(path)
