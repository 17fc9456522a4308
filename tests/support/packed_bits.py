"""A table of packed formats beside the libraries that they are from: `python -m tests.support.packed_bits`.

For each format, how many fields of `pack_weight` and how many numbers of `PackedWeight.dequantize` differ from those of
the library, bit for bit. A library that is not installed is left out.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import reference
from reference import PackedWeight

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Row:
    """A weight that a library packs.

    Attributes:
        target: the module of `conformance.targets` that wraps the library.
        options: of the format.   shape: [N, K].   dtype: the weight's.
        packed_otherwise: why the library's codes are not `pack_weight`'s; empty where they must be.
        decoded_otherwise: why its numbers are not those of its own fields; empty where they must be.
    """

    target: str
    format: str
    options: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, int] = (16, 192)
    dtype: torch.dtype = torch.float32
    packed_otherwise: str = ""
    decoded_otherwise: str = ""


def _bitsandbytes() -> Iterator[Row]:
    minus_zero = "codes tiny negative numbers as -0"
    for name, why in (("nf4", ""), ("fp4", minus_zero)):
        for options in ({}, {"nested": True}, {"block_size": 32}, {"block_size": 64, "nested": True}):
            yield Row("peft_bitsandbytes", name, options, packed_otherwise=why)
        for dtype in SIXTEEN_BITS:
            yield Row("peft_bitsandbytes", name, dtype=dtype, packed_otherwise=why)
        yield Row("peft_bitsandbytes", name, {"block_size": 128}, (8, 256), packed_otherwise=why)
    yield Row("peft_bitsandbytes", "nf4", shape=(5, 7), packed_otherwise="fills the last four bits with the code of 0")
    other_scales = "takes other blocks' scales where K % block is not 0"
    for options, shape in (({}, (24, 96)), ({"block_size": 128}, (16, 64))):
        yield Row("peft_bitsandbytes", "nf4", options, shape, decoded_otherwise=other_scales)
    yield Row("peft_bitsandbytes", "int8_bitsandbytes")


def _torchao() -> Iterator[Row]:
    for name in ("int8_torchao", "fp8", "int4"):
        options = {"zero": True} if name == "int4" else {}
        yield Row("peft_torchao", name, options)
        yield Row("peft_torchao", name, options, (4, 32))
        grids = ({"block_size": (16, 192)}, {"block_size": (8, 96)}) if name == "fp8" else ()
        yield from (Row("peft_torchao", name, grid) for grid in grids)
        for dtype in SIXTEEN_BITS:
            yield Row("peft_torchao", name, options, dtype=dtype, packed_otherwise="packs in the weight's dtype")


def rows() -> list[Row]:
    """The weights of the table."""
    hqq = [Row("peft_hqq", "hqq", {"axis": axis}, packed_otherwise="only read") for axis in (1, 0)]
    return [*_bitsandbytes(), *_torchao(), *hqq]


def target_of(row: Row) -> ModuleType:
    """The module that wraps the library; ImportError if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"conformance.targets.{row.target}")


def weight_of(row: Row) -> nn.Linear:
    """A linear layer with rows of magnitudes that differ 8-fold from their neighbours."""
    generator = torch.Generator().manual_seed(7)
    n, k = row.shape
    linear = nn.Linear(k, n, bias=False, dtype=row.dtype)
    magnitudes = torch.tensor([1.0, 8.0]).repeat(n)[:n, None] / 8
    linear.weight.data = (torch.randn(n, k, generator=generator) * magnitudes).to(row.dtype)
    return linear


@dataclass(frozen=True)
class Differences:
    """The numbers of elements that differ: of each field from `pack_weight`'s, and of Ŵ from the library's."""

    fields: dict[str, int]
    numbers: int


def differences(row: Row) -> Differences:
    """Pack a weight by the library and here, and count the elements that differ."""
    target, linear = target_of(row), weight_of(row)
    base = target.packed_linear(linear, row.format, **row.options)
    found = target.packed_fields(base)
    fields: dict[str, int] = {}
    if row.format != "hqq":
        packed = reference.pack_weight(linear.weight, row.format, **row.options)
        fields = {name: differing(found["fields"][name], packed.fields[name]) for name in packed.fields}
    numbers = PackedWeight(**found).dequantize(row.dtype).float()
    return Differences(fields, differing(target.dequantize_weight(base), numbers))


def differing(a: Tensor, b: Tensor) -> int:
    """The number of elements that differ in value or dtype; -0 and 0 are the same number."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return a.numel()
    return int((a.detach().float() != b.detach().float()).sum())


def main() -> None:
    """Print the table."""
    print("| library | format | options | weight | fields that differ | numbers that differ | why |")
    print("|---|---|---|---|---|---:|---|")
    for row in rows():
        try:
            found = differences(row)
        except ImportError as error:
            print(f"| {row.target} | {row.format} | | | not installed: {error} | | |")
            continue
        fields = ", ".join(f"{name} {count}" for name, count in found.fields.items() if count) or "–"
        options = ", ".join(f"{key}={value}" for key, value in row.options.items()) or "–"
        dtype = str(row.dtype).removeprefix("torch.")
        why = "; ".join(filter(None, (row.packed_otherwise, row.decoded_otherwise))) or "–"
        cells = (row.target, row.format, options, f"{dtype} {list(row.shape)}", fields, str(found.numbers), why)
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
