"""Formats and sizes of blocks that a library of packed layers lacks, refused by name; shared by the targets of all."""

from __future__ import annotations

from typing import Any

from torch import nn

PACKED = ("nf4", "fp4", "int8_bitsandbytes", "int8_torchao", "fp8", "int4")  # features, which a target may lack
FORMATS = (*PACKED, "gptq", "awq", "hqq")


def check_format(format: str, offered: tuple[str, ...], library: str) -> None:  # noqa: A002
    """Check that a library packs a format.

    Raises:
        NotImplementedError: if another library does.
        ValueError: if there is no such format.
    """
    if format not in offered:
        kind = NotImplementedError if format in FORMATS else ValueError
        raise kind(f"format = {format!r}: {library} has {' and '.join(offered)}")


def check_sizes(name: str, given: Any, linear: nn.Linear, sizes: tuple[Any, ...], whole: tuple[int, ...] = ()) -> None:
    """Check that sizes of blocks are positive whole numbers, and divide those of a weight.

    Args:
        name: of the argument.   given: as the caller gave it.   sizes: the numbers in it.
        whole: what each must divide, if anything.
    Raises:
        ValueError: if they are not.
    """
    right = all(isinstance(size, int) and size > 0 for size in sizes)
    if not right or any(total % size for total, size in zip(whole, sizes, strict=False)):
        shape = [linear.out_features, linear.in_features]
        raise ValueError(f"{name} = {given!r} of a weight {shape}: expected positive whole numbers that divide it")
