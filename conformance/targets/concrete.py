"""concrete-ml-extensions as a target, with toy parameters: `loraspec run conformance.targets.concrete --group fhe`."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from reference.encrypted.encryption import ConcreteBackend

if importlib.util.find_spec("concrete_ml_extensions") is None:
    raise ModuleNotFoundError(
        "the target conformance.targets.concrete needs concrete-ml-extensions: pip install 'loraspec[fhe]'",
        name="concrete_ml_extensions",
    )

CONFORMANCE = {
    "name": "concrete-ml-extensions, toy parameters",
    "version": importlib.metadata.version("concrete-ml-extensions"),
}


def fhe_backend() -> ConcreteBackend:
    """The backend of `HybridFHEModel(backend="toy")`; the backends "exact" and "fast" differ only in parameters."""
    return ConcreteBackend("toy")
