"""Known-bad twins of forward: another weight than the stored one, a lost term, a wrong shape or dtype."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from tests.baselines.quantised import RightLayer, target_of
from tests.known_bad import breaks


def wrong(*clauses: str, **options) -> Callable[[type], type]:
    """A decorator that registers a target, whose layers are of a class, as a twin of each of these clauses."""

    def register(kind: type[RightLayer]) -> type[RightLayer]:
        breaks(*clauses, **options)(target_of(kind))
        return kind

    return register


class ReadsStorage(RightLayer):
    """A layer that reads its fields in its own way."""

    def read(self, name, field):
        """A field as the layer reads it."""
        return field

    def numbers(self, dtype):
        weight = self.packed_weight
        fields = {name: self.read(name, field) for name, field in weight.fields.items()}
        return dataclasses.replace(weight, fields=fields).dequantize(dtype)


@wrong("QNT-FWD", says="worst    y", source="bitsandbytes-foundation/bitsandbytes #1472: nibbles swapped")
class SwapsTheNibbles(ReadsStorage):
    def read(self, name, field):
        return field << 4 | field >> 4 if field.dtype == torch.uint8 and name == "codes" else field
