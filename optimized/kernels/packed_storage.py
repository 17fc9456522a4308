"""The storage of a packed weight as the kernels read it, and the numbers of one tile of it."""
# mypy: allow-incomplete-defs, allow-untyped-calls

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

import reference
from optimized.packed.four_bit_tables import TABLES, decoded_absmax
from reference.packed.eight_bit_rows import INVERSE_127


@dataclass(frozen=True)
class Storage:
    """``Ŵ[n, k] = (value(q[n, k]) - zero)·scale·FACTOR``; scale and zero have index ``(n // ROWS·K + k) // GROUP``.

    Attributes:
        shape: N and K.
        codes: uint8 or int8, contiguous.
        table: float32 [16] or [256], the value of each code, or None for integers.
        scale: float32, contiguous.   zero: float32 like scale, or None.
        rows, group: ROWS and GROUP, the rows and columns that share a scale; blocks of rows may cross rows if ROWS = 1.
        factor: a second factor.
    """

    shape: tuple[int, int]
    codes: torch.Tensor
    table: torch.Tensor | None
    scale: torch.Tensor
    zero: torch.Tensor | None
    group: int
    rows: int = 1
    factor: float = 1.0

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The four tensors; those that are missing are not read, and stand for the scale."""
        return self.codes, self.scale if self.table is None else self.table, self.scale, self._zero

    @property
    def _zero(self) -> torch.Tensor:
        return self.scale if self.zero is None else self.zero

    @property
    def constants(self) -> dict[str, Any]:
        """The constants of a kernel."""
        return {
            "PAIRED": self.table is not None and self.table.numel() == 16,
            "TABLE": self.table is not None,
            "ZERO": self.zero is not None,
            "GROUP": self.group,
            "ROWS": self.rows,
            "FACTOR": self.factor,
        }


@triton.jit
def packed_numbers(
    codes_ptr,
    table_ptr,
    scale_ptr,
    zero_ptr,
    n,
    k,
    K,
    inside,
    PAIRED: tl.constexpr,
    TABLE: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """Ŵ[n, k] in float32 for int64 rows n and columns k; 0 where not inside."""
    place = n * K + k
    if PAIRED:  # the even element is in the high four bits
        byte = tl.load(codes_ptr + place // 2, mask=inside, other=0).to(tl.int32)
        q = tl.where(place % 2 == 0, byte >> 4, byte & 15)
    else:
        q = tl.load(codes_ptr + place, mask=inside, other=0).to(tl.int32)
    if TABLE:  # noqa: SIM108  (a compile-time branch)
        value = tl.load(table_ptr + q, mask=inside, other=0.0)
    else:
        value = q.to(tl.float32)
    block = (n // ROWS * K + k) // GROUP
    if ZERO:
        value -= tl.load(zero_ptr + block, mask=inside, other=0.0)
    value *= tl.load(scale_ptr + block, mask=inside, other=0.0)
    if FACTOR != 1.0:
        value *= FACTOR
    return tl.where(inside, value, 0.0)


def storage_of(weight: reference.PackedWeight) -> Storage:
    """The storage of a packed weight for which `why_not_dequantize_kernel` has no reason."""
    fields, options, (n, k) = weight.fields, weight.options, weight.shape
    codes = fields["codes"]
    if weight.format in TABLES:
        absmax = decoded_absmax(fields) if options["nested"] else fields["absmax"]
        table = torch.tensor(TABLES[weight.format], device=codes.device)
        return Storage((n, k), codes, table, absmax, None, options["block_size"])
    if weight.format == "int8_bitsandbytes":
        return Storage((n, k), codes, None, fields["absmax"], None, k, factor=INVERSE_127)
    scale = fields["scale"].float()
    group = k if scale.dim() == 1 else k // scale.shape[1]
    if weight.format == "fp8":
        table = torch.arange(256, device=codes.device, dtype=torch.uint8).view(codes.dtype).float()
        rows = n // scale.shape[0]
        return Storage((n, k), codes.view(torch.uint8), table, scale, None, group, rows)
    zero = fields["zero"].float() if weight.format == "int4" and options["zero"] else None
    return Storage((n, k), codes, None, scale, zero, group)
