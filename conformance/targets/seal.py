"""seal-python, packed by tokens, as a target: `loraspec run conformance.targets.seal --group fhe`."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from reference.encrypted.seal_backend import SealBackend

if importlib.util.find_spec("seal") is None:
    raise ModuleNotFoundError(
        "the target conformance.targets.seal needs seal-python: pip install 'loraspec[fhe]'", name="seal"
    )

CONFORMANCE = {"name": "seal-python, packed by tokens", "version": importlib.metadata.version("seal-python")}


def fhe_backend() -> SealBackend:
    """The backend of `HybridFHEModel(backend="seal")`."""
    return SealBackend()
