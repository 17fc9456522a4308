"""Packed weights of every format with random codes, for tests of implementations beside the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import reference

# Each format, with each layout that its implementation distinguishes: blocks that cross rows, ragged and odd blocks,
# nested scales, square blocks, zero points, permuted groups, halves of rows.
EVERY: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
    ("nf4", 32, 64, {}),
    ("nf4", 12, 96, {}),
    ("nf4", 5, 7, {}),
    ("nf4", 13, 21, {"nested": True}),
    ("nf4", 6, 48, {"block_size": 3}),
    ("nf4", 64, 64, {"nested": True}),
    ("fp4", 24, 128, {"nested": True}),
    ("fp4", 6, 48, {"block_size": 32}),
    ("int8_bitsandbytes", 24, 40, {}),
    ("int8_torchao", 24, 40, {}),
    ("fp8", 24, 40, {}),
    ("fp8", 24, 40, {"block_size": (4, 8)}),
    ("fp8", 24, 40, {"block_size": (24, 40)}),
    ("int4", 24, 64, {}),
    ("int4", 24, 64, {"zero": True}),
    ("gptq", 24, 64, {"group_size": 16}),
    ("gptq", 16, 32, {"group_size": 16, "version": 2}),
    ("awq", 64, 64, {"group_size": 16}),
    ("hqq", 16, 64, {"group_size": 16}),
    ("hqq", 8, 24, {"group_size": 16}),
    ("hqq", 9, 32, {"group_size": 16}),
    ("hqq", 16, 64, {"group_size": 16, "axis": 0}),
)


def stored(name: str, n: int, k: int, options: dict[str, Any]) -> reference.PackedWeight:
    """A weight [n, k] in a format; the fields of a format that is only read are random."""
    draws = torch.Generator().manual_seed(n * k)
    if name in ("gptq", "awq", "hqq"):
        fields = _read_fields(name, n, k, options, draws)
        return reference.PackedWeight(name, (n, k), fields, options)
    weight = torch.randn(n, k, generator=draws)
    weight.view(-1)[: n * k // 4] *= 1e-3  # neighbouring blocks of very different scales
    found = reference.pack_weight(weight, name, **options)
    if "zero" in found.fields:
        found.fields["zero"].random_(-3, 4, generator=draws)
    return found


def _read_fields(name: str, n: int, k: int, options: dict[str, Any], draws: torch.Generator) -> dict[str, Tensor]:
    groups, size = k // options["group_size"], options["group_size"]

    def words(*shape: int) -> Tensor:
        return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, generator=draws)

    def scales(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=draws) + 0.5).half()

    if name == "gptq":
        order = torch.randint(0, groups, (k,), dtype=torch.int32, generator=draws)
        fields = {"qweight": words(k // 8, n), "qzeros": words(groups, n // 8), "scales": scales(groups, n)}
        return {**fields, "g_idx": order}
    if name == "awq":
        return {"qweight": words(k, n // 8), "qzeros": words(groups, n // 8), "scales": scales(groups, n)}
    count = n * k // size
    rows, columns = (count, size) if options.get("axis", 1) == 1 else (size, count)
    of_groups = (count, 1) if options.get("axis", 1) == 1 else (1, count)
    codes = torch.randint(0, 256, (rows // 2, columns), dtype=torch.uint8, generator=draws)
    return {"codes": codes, "scale": scales(*of_groups), "zero": scales(*of_groups) * 8}
