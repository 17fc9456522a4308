"""The numbers that a packed weight stands for, decoded from its stored fields in NumPy by tables of its own.

Each product is computed in float32, in the order that the format states, so that a right decoder gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conformance.judgement.outcomes import require
from conformance.numerics.formats import Array

Single = NDArray[np.float32]
Fields = Mapping[str, Any]  # NumPy arrays: integers as stored, floating point numbers in float32

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
FP4 = (
    0.0,
    1 / 192,
    2 / 3,
    1.0,
    1 / 3,
    1 / 2,
    1 / 6,
    1 / 4,
    -0.0,
    -1 / 192,
    -2 / 3,
    -1.0,
    -1 / 3,
    -1 / 2,
    -1 / 6,
    -1 / 4,
)
OF_127 = np.float32(7.874015718698502e-3)
AWQ = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an int32 holds column 8·c + AWQ[i]
NESTED = 256  # blocks of one absmax2


@dataclass(frozen=True)
class Stored:
    """What `packed_fields` says of a layer.

    Attributes:
        options: the format's options, defaults included.   fields: the tensors by name.
    """

    format: str
    shape: tuple[int, int]
    options: Mapping[str, Any]
    fields: Mapping[str, torch.Tensor]

    @classmethod
    def read(cls, found: Any) -> Stored:
        """The result of `packed_fields`, checked.

        Raises:
            Violation: if a key is missing, or the format is none of the specification.
        """
        keys = ("format", "shape", "options", "fields")
        given = list(found) if isinstance(found, Mapping) else type(found).__name__
        require(isinstance(found, Mapping) and set(keys) <= set(found), f"packed_fields returned {given}: expected a "
                f"dict with {', '.join(keys)}")  # fmt: skip
        require(found["format"] in FIELDS, f"packed_fields says format {found['format']!r}: expected one of "
                f"{', '.join(FIELDS)}")  # fmt: skip
        stored = cls(found["format"], tuple(found["shape"]), found["options"], found["fields"])
        missing = [name for name in stored.names if name not in stored.fields]
        require(not missing, f"packed_fields of {stored.format} has the fields {', '.join(stored.fields)}: expected "
                f"{', '.join(stored.names)} too" if missing else "")  # fmt: skip
        return stored

    @property
    def nested(self) -> bool:
        """Whether the scales of blocks are stored in 8 bits."""
        return bool(self.options.get("nested", False))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fields that the format has with these options."""
        names = FIELDS[self.format]
        if self.nested:
            return ("codes", "absmax_codes", "absmax2", "offset")
        return (*names, "zero") if self.format == "int4" and self.options.get("zero", False) else names

    @property
    def numbers(self) -> Array:
        """Ŵ [N, K], each number as float32 gives it."""
        return self.decoded(self.fields)

    def fused(self) -> Array:
        """How far one rounding less in a nested absmax moves each number: a unit in the last place of its two terms."""
        held = {name: _array(self.fields[name]) for name in self.names}
        scaled = dynamic_map()[held["absmax_codes"].reshape(-1)] * _second(held)
        slack = 2.0**-23 * np.abs(scaled) + np.spacing(np.abs(scaled + held["offset"]))
        size = self.shape[0] * self.shape[1]
        found: Array = slack[np.arange(size) // int(self.options.get("block_size", 64))].reshape(self.shape)
        return found.astype(np.float64)

    def decoded(self, fields: Mapping[str, torch.Tensor]) -> Array:
        """Ŵ of other fields of the same format."""
        held = {name: _array(fields[name]) for name in self.names}
        value = DECODERS[self.format](held, self.shape, self.options)
        require(value.size == np.prod(self.shape), f"the fields of {self.format} hold {value.size} numbers: expected "
                f"{list(self.shape)}")  # fmt: skip
        return value.reshape(self.shape).astype(np.float64)


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """A field in NumPy: integers as they are, all floating point numbers in float32, which holds them exactly."""
    found: NDArray[Any] = tensor.detach().cpu().float().numpy() if tensor.is_floating_point() else _whole(tensor)
    return found


def _whole(tensor: torch.Tensor) -> NDArray[np.int64]:
    found: NDArray[np.int64] = tensor.detach().cpu().long().numpy()
    return found


def dynamic_map() -> Single:
    """The 256 values of an 8-bit code of scales, ascending, in float32 as they are computed."""
    values = [np.float32(0.0), np.float32(1.0)]
    for i in range(7):
        ends = torch.linspace(0.1, 1.0, 2**i + 1, dtype=torch.float32).numpy()
        means = (ends[1:] + ends[:-1]) / np.float32(2) * np.float32(10.0 ** (i - 6))
        values += [*means, *-means]
    return np.sort(np.array(values, dtype=np.float32))


def _tabled(table: tuple[float, ...]) -> Callable[[Fields, tuple[int, int], Mapping[str, Any]], Single]:
    def decode(fields: Fields, shape: tuple[int, int], options: Mapping[str, Any]) -> Single:
        size, block = shape[0] * shape[1], int(options.get("block_size", 64))
        codes = fields["codes"].reshape(-1)
        pairs = np.stack([codes // 16, codes % 16], -1).reshape(-1)[:size]  # the even element is in the high bits
        scale = _nested(fields) if options.get("nested", False) else fields["absmax"].reshape(-1)
        value: Single = np.array(table, dtype=np.float32)[pairs] * scale[np.arange(size) // block]
        return value

    return decode


def _nested(fields: Fields) -> Single:
    value: Single = dynamic_map()[fields["absmax_codes"].reshape(-1)] * _second(fields) + fields["offset"].reshape(())
    return value


def _second(fields: Fields) -> Single:
    """The absmax2 of each block."""
    count = fields["absmax_codes"].size
    second: Single = fields["absmax2"].reshape(-1)[np.arange(count) // NESTED]
    return second


def _eight_bits(fields: Fields, shape: tuple[int, int], options: Mapping[str, Any]) -> Single:  # noqa: ARG001
    value: Single = fields["codes"].astype(np.float32) * fields["absmax"].reshape(-1, 1) * OF_127
    return value


def _scaled_rows(fields: Fields, shape: tuple[int, int], options: Mapping[str, Any]) -> Single:  # noqa: ARG001
    value: Single = fields["codes"].astype(np.float32) * fields["scale"].reshape(-1, 1)
    return value


def _grid(fields: Fields, shape: tuple[int, int], options: Mapping[str, Any]) -> Single:
    rows, columns = options.get("block_size") or (1, shape[1])
    scale = fields["scale"].reshape(shape[0] // rows, shape[1] // columns)
    value: Single = fields["codes"] * scale[np.ix_(np.arange(shape[0]) // rows, np.arange(shape[1]) // columns)]
    return value


def _grouped(fields: Fields, shape: tuple[int, int], options: Mapping[str, Any]) -> Single:
    group = np.arange(shape[1]) // int(options.get("group_size", 32))
    zero = fields["zero"][:, group] if "zero" in fields else 0
    value: Single = (fields["codes"] - zero).astype(np.float32) * fields["scale"][:, group]
    return value


def nibbles(words: NDArray[np.int64]) -> NDArray[np.int64]:
    """The eight numbers of 4 bits in each word of 32, the lowest bits first: [..., 8]."""
    found: NDArray[np.int64] = words[..., None] % 2**32 // 16 ** np.arange(8) % 16
    return found


def _gptq(fields: Fields, shape: tuple[int, int], options: Mapping[str, Any]) -> Single:
    codes = nibbles(fields["qweight"].T).reshape(shape)  # eight columns k of an output in each word
    zeros = nibbles(fields["qzeros"]).reshape(-1, shape[0]) + (1 if int(options.get("version", 1)) == 1 else 0)
    group = fields["g_idx"]
    value: Single = (codes - zeros[group].T).astype(np.float32) * fields["scales"][group].T
    return value


def _awq(fields: Fields, shape: tuple[int, int], options: Mapping[str, Any]) -> Single:
    def ordered(words: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.empty((*words.shape, 8), dtype=np.int64)
        found[..., AWQ] = nibbles(words)
        return found.reshape(len(words), -1)

    group = np.arange(shape[1]) // int(options.get("group_size", 128))
    codes, zeros = ordered(fields["qweight"]), ordered(fields["qzeros"])
    value: Single = ((codes - zeros[group]).astype(np.float32) * fields["scales"][group]).T
    return value


def _hqq(fields: Fields, shape: tuple[int, int], options: Mapping[str, Any]) -> Single:  # noqa: ARG001
    codes = np.concatenate([fields["codes"] // 16, fields["codes"] % 16]).astype(np.float32)
    value: Single = (codes - fields["zero"]) * fields["scale"]
    return value


FIELDS: Mapping[str, tuple[str, ...]] = {
    "nf4": ("codes", "absmax"),
    "fp4": ("codes", "absmax"),
    "int8_bitsandbytes": ("codes", "absmax"),
    "int8_torchao": ("codes", "scale"),
    "fp8": ("codes", "scale"),
    "int4": ("codes", "scale"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "hqq": ("codes", "scale", "zero"),
}
DECODERS: Mapping[str, Callable[[Fields, tuple[int, int], Mapping[str, Any]], Single]] = {
    "nf4": _tabled(NF4),
    "fp4": _tabled(FP4),
    "int8_bitsandbytes": _eight_bits,
    "int8_torchao": _scaled_rows,
    "fp8": _grid,
    "int4": _grouped,
    "gptq": _gptq,
    "awq": _awq,
    "hqq": _hqq,
}
