"""A right layer on a packed base that merges by requantising, which its target declares; twins override one step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

import reference
from tests.baselines.quantised import RightLayer, RightPacked


class RequantisingLayer(RightLayer):
    """A layer whose `merge` packs Ŵ + ΔW, and keeps the storage for `unmerge`."""

    kept: dict[str, Tensor] | None = None

    @property
    def merged(self) -> bool:
        return self.kept is not None

    @torch.no_grad()
    def merge(self) -> float:  # type: ignore[override]
        numbers, update = self.numbers(torch.float32), self.lora_B.weight @ self.lora_A.weight * self.scale
        packed = self.packed(numbers + update)
        error = self.error(packed.dequantize() - numbers - update, update)
        if self.loses(error):
            raise ValueError(f"merging would lose {error:.0%} of the update: expected at most half of it")
        held = dict(self.packed_weight.fields)
        self.__dict__["kept"] = {name: field.clone() for name, field in held.items()}
        self.write(dict(packed.fields))
        return error

    def packed(self, numbers: Tensor) -> reference.PackedWeight:
        """Numbers rounded to the layer's format."""
        return reference.pack_weight(numbers, self.format, **self.options)

    def error(self, difference: Tensor, update: Tensor) -> float:
        """‖error‖/‖ΔW‖."""
        return float(difference.norm() / update.norm())

    def loses(self, error: float) -> bool:
        """Whether so much of the update is lost that merging is refused."""
        return error > 0.5

    def write(self, fields: dict[str, Tensor]) -> None:
        """Store these fields."""
        for name, field in self.packed_weight.fields.items():
            field.copy_(fields[name])

    @torch.no_grad()
    def unmerge(self) -> None:
        if self.kept is not None:
            self.write(self.kept)
            self.__dict__["kept"] = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.kept is None else self.base(x).to(x.dtype)


class RequantisingPacked(RightPacked):
    """A target that merges by requantising."""

    kind = RequantisingLayer
    CONFORMANCE: ClassVar[dict[str, Any]] = {"features": {"packed_merge": "requantised"}}


def requantising(layer: type[RequantisingLayer]) -> type[RequantisingPacked]:
    """The class of a target with this class of layers, and its name."""
    return type(layer.__name__, (RequantisingPacked,), {"kind": layer})
