"""A right `HybridFHEModel`; a known-bad twin replaces its integer layer, its remote module or the model itself."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import reference
from tests.known_bad import record


class Right:
    """A target for the group `fhe`; an instance has the group's public names."""

    layer: type[reference.QuantizedLinear] = reference.QuantizedLinear
    module: type[reference.RemoteModule] = reference.RemoteModule
    model: type[reference.HybridFHEModel] = reference.HybridFHEModel
    HybridFHEMode: Any = reference.HybridFHEMode
    CustomLinear = reference.CustomLinear
    LoraTraining = reference.LoraTraining
    ConcreteBackend = reference.ConcreteBackend
    EncryptionParameters = reference.EncryptionParameters
    quantize_dynamic = staticmethod(reference.quantize_dynamic)
    quantize_static = staticmethod(reference.quantize_static)
    quantize_weight = staticmethod(reference.quantize_weight)
    quantize_weight_columns = staticmethod(reference.quantize_weight_columns)

    @cached_property
    def RemoteModule(self) -> Any:
        return type("RemoteModule", (self.module,), {"quantized_linear": self.layer})

    @cached_property
    def HybridFHEModel(self) -> Any:
        return type("HybridFHEModel", (self.model,), {"remote_module": self.RemoteModule})


PARTS = {
    "layer": reference.QuantizedLinear,
    "module": reference.RemoteModule,
    "model": reference.HybridFHEModel,
}


def fhe_breaks(clause: str, *, says: str, dtypes: tuple[str, ...] = ("float32", "bfloat16"), source: str = "") -> Any:
    """Return a decorator that registers a defective part or target as a known-bad twin."""

    def register(kind: type) -> type:
        part = next((name for name, right in PARTS.items() if issubclass(kind, right)), None)
        target = kind() if part is None else type(kind.__name__, (Right,), {part: kind})()
        record(kind.__name__, target, clause, groups=("fhe",), says=says, dtypes=dtypes, source=source)
        return kind

    return register
