"""Packed formats beside the libraries that they are from; skipped where those are not installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support import packed_bits
from tests.support.packed_bits import Row


def installed(row: Row) -> Any:
    """The target of a row, or a skip."""
    try:
        return packed_bits.target_of(row)
    except ImportError as error:
        pytest.skip(str(error))


def name_of(row: Row) -> str:
    options = "-".join(f"{key}{value}" for key, value in row.options.items())
    return f"{row.format}-{options}-{row.shape[0]}x{row.shape[1]}-{str(row.dtype).removeprefix('torch.')}"


@pytest.mark.filterwarnings("ignore")  # libraries warn at import and about devices
@pytest.mark.parametrize("row", packed_bits.rows(), ids=name_of)
def test_a_format_equals_the_librarys_bit_for_bit(row: Row) -> None:
    installed(row)
    found = packed_bits.differences(row)
    differing = sum(found.fields.values())
    assert (differing > 0) == bool(row.packed_otherwise and row.format != "hqq"), found.fields
    assert (found.numbers > 0) == bool(row.decoded_otherwise), found.numbers


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("target", "format", "options", "said"),
    [
        ("peft_bitsandbytes", "int4", {}, "bitsandbytes has nf4 and fp4 and int8_bitsandbytes"),
        ("peft_bitsandbytes", "nf4", {"block_size": 48}, "block_size = 48: bitsandbytes has 32"),
        ("peft_bitsandbytes", "int8_bitsandbytes", {"compute_dtype": torch.float32}, "computes in float16"),
        ("peft_torchao", "nf4", {}, "torchao has int8_torchao and fp8 and int4"),
        ("peft_torchao", "fp8", {"compute_dtype": torch.bfloat16}, "computes in torch.float32"),
        ("peft_hqq", "nf4", {}, "HQQ has hqq"),
        ("nemo_bitsandbytes", "int8_bitsandbytes", {}, "NeMo on bitsandbytes has nf4 and fp4"),
    ],
)
def test_a_target_says_what_its_library_does_not_have(
    target: str,
    format: str,  # noqa: A002
    options: dict[str, Any],
    said: str,
) -> None:
    row = Row(target, format)
    library = installed(row)
    with pytest.raises(NotImplementedError, match=said):
        library.packed_linear(packed_bits.weight_of(row), format, **options)


def test_every_shape_of_the_table_counts_a_difference() -> None:
    a = torch.tensor([0.0, 1.0, 2.0])
    assert packed_bits.differing(a, torch.tensor([-0.0, 1.0, 2.5])) == 1
    assert packed_bits.differing(a, a.double()) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("target", "format", "options", "said"),
    [
        ("peft_bitsandbytes", "nf5", {}, "format = 'nf5': bitsandbytes has nf4 and fp4 and int8_bitsandbytes"),
        ("peft_bitsandbytes", "nf4", {"block_size": 2.5}, r"block_size = 2.5 of a weight \[16, 192\]: expected"),
        ("peft_torchao", "int4", {"group_size": 191}, r"group_size = 191 of a weight \[16, 192\]: expected positive"),
        ("peft_torchao", "fp8", {"block_size": (15, 192)}, r"block_size = \(15, 192\) of a weight \[16, 192\]"),
        ("peft_hqq", "nf5", {}, "format = 'nf5': HQQ has hqq"),
        ("nemo_bitsandbytes", "nf5", {}, "format = 'nf5': NeMo on bitsandbytes has nf4 and fp4"),
    ],
)
def test_a_target_refuses_what_no_library_has(target: str, format: str, options: dict[str, Any], said: str) -> None:  # noqa: A002
    row = Row(target, format)
    library = installed(row)
    with pytest.raises(ValueError, match=said):
        library.packed_linear(packed_bits.weight_of(row), format, **options)
