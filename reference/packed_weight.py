"""A frozen weight in few bits: the storage P, and the numbers Ŵ that it stands for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .packed.formats import format_named


@dataclass(frozen=True)
class PackedWeight:
    """The storage P of a weight [N, K], which stands for the numbers ``Ŵ = dq(P)``.

    Attributes:
        format: "nf4", "fp4", "int8_bitsandbytes", "int8_torchao", "fp8", "int4", "gptq", "awq" or "hqq"; the files of
            the package `packed` state the formula of each.
        shape: (N, K).
        fields: the tensors of P by name.
        options: the format's options; those that are missing take their defaults.
    Raises:
        ValueError: for an unknown format or option, a block or group size that does not divide, and a field that is
            missing, unknown, or of another shape or dtype than the format's.
    """

    format: str
    shape: tuple[int, int]
    fields: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = format_named(self.format)
        if len(self.shape) != 2 or any(not isinstance(n, int) or n < 0 for n in self.shape):
            raise ValueError(f"shape is {self.shape!r}: expected (out_features, in_features)")
        object.__setattr__(self, "options", known.completed(self.options))
        layout = known.layout(self.shape, self.options)
        if list(self.fields) != list(layout):
            got = ", ".join(self.fields)
            raise ValueError(f"a weight in {self.format} has the fields {got}: expected {', '.join(layout)}")
        for name, (shape, dtypes) in layout.items():
            tensor = self.fields[name]
            if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
                expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                raise ValueError(
                    f"field {name} of a weight {list(self.shape)} in {self.format} is {got}: "
                    f"expected {expected} {list(shape)}"
                )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers ``Ŵ`` [N, K]: computed in float32 and rounded once to dtype."""
        return format_named(self.format).decode(self.fields, self.shape, self.options).to(dtype)

    @property
    def nbytes(self) -> int:
        """The bytes of the storage."""
        return sum(tensor.nbytes for tensor in self.fields.values())

    def without_fields(self) -> "Description":
        """What is known of the weight beside its tensors."""
        return Description(self.format, self.shape, self.options)


@dataclass(frozen=True)
class Description:
    """Format, shape and options of a packed weight, see `PackedWeight`."""

    format: str
    shape: tuple[int, int]
    options: Mapping[str, Any]

    def with_fields(self, fields: Mapping[str, Tensor]) -> PackedWeight:
        """The packed weight with these tensors."""
        return PackedWeight(self.format, self.shape, fields, self.options)


@torch.no_grad()
def pack_weight(weight: Tensor, format: str, **options: Any) -> PackedWeight:  # noqa: A002 the word of the interface
    """Round a weight to codes and scales.

    Args:
        weight: [N, K], float32, float16 or bfloat16; finite.
        format: a name of `PackedWeight`, except gptq, awq and hqq, whose codes their own libraries choose.
        options: nf4, fp4: block_size (64), nested (False); fp8: block_size ((1, K)); int4: group_size (32), zero.
    Returns:
        a `PackedWeight` on the weight's device, whose fields share no memory with the weight.
    Raises:
        ValueError: for a format or option that does not exist, a format that is only read, a block or group size that
            does not divide, and a weight that is not [N, K], has another dtype, or holds NaN or inf.
    """
    known = format_named(format)
    if known.pack is None:
        raise ValueError(f"{format} is only read, because its own library chooses the codes: build a PackedWeight")
    if weight.ndim != 2 or weight.dtype not in {torch.float32, torch.float16, torch.bfloat16}:
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}: expected float32, float16 or bfloat16 [N, K]")
    if not weight.isfinite().all():
        count = int((~weight.isfinite()).sum())
        raise ValueError(f"weight {list(weight.shape)} has {count} elements that are NaN or inf: expected none")
    complete = known.completed(options)
    known.layout((weight.shape[0], weight.shape[1]), complete)  # refuses sizes that do not divide
    fields = known.pack(weight.float(), complete, weight.dtype)
    return PackedWeight(format, (weight.shape[0], weight.shape[1]), fields, complete)
