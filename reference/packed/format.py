"""What a format of packed weights consists of, and the checks that all formats share."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, int]
Fields = Mapping[str, Tensor]
Options = Mapping[str, Any]
Layout = dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]

FLOATING = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Format:
    """One way to store a weight W [N, K] in codes and scales.

    Attributes:
        name: the format's name.
        decode: (fields, shape, options) -> the numbers Ŵ [N, K] in float32.
        layout: (shape, options) -> the shape and the possible dtypes of each field.
        pack: (weight in float32, options, dtype of the weight) -> fields; None for a format that is only read.
        defaults: each option with its default.
    """

    name: str
    decode: Callable[[Fields, Shape, Options], Tensor]
    layout: Callable[[Shape, Options], Layout]
    pack: Callable[[Tensor, Options, torch.dtype], dict[str, Tensor]] | None
    defaults: Options = field(default_factory=dict)

    def completed(self, options: Options) -> dict[str, Any]:
        """Options with the defaults of those that are missing.

        Raises:
            ValueError: naming an option that the format does not have, with the nearest that it has.
        """
        for key in options:
            if key not in self.defaults:
                near = difflib.get_close_matches(key, self.defaults, n=1)
                hint = f" did you mean {near[0]!r}?" if near else ""
                has = f"expected {', '.join(self.defaults)}" if self.defaults else "it has none"
                raise ValueError(f"{key!r} is no option of {self.name}:{hint} {has}")
        return {**self.defaults, **options}


def whole_number(name: str, value: object) -> int:
    """A positive int, or a ValueError that names the option."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a positive int")
    return value


def divided(size: int, block: int, name: str, block_name: str) -> int:
    """``size / block``, or a ValueError if the block does not divide the size."""
    if size % block:
        raise ValueError(f"{block_name} is {block}, which does not divide {name} = {size}")
    return size // block


def blocks(values: Tensor, block_size: int) -> Tensor:
    """A flat tensor as rows of block_size values; zeros complete the last row."""
    count = math.ceil(values.numel() / block_size)
    return torch.nn.functional.pad(values.flatten(), (0, count * block_size - values.numel())).view(count, block_size)
