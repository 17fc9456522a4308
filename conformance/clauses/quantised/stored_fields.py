"""Stored fields with random codes and scales, as files hold them, for weights that the suite makes without packing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from conformance.clauses.quantised.case import StoredCase
from conformance.clauses.quantised.decoded_weight import Stored


def stored_weight(case: StoredCase) -> Stored:
    """A packed weight [n, k] in the case's format."""
    return Stored(case.format, (case.n, case.k), case.options, drawn(case))


def drawn(case: StoredCase) -> dict[str, torch.Tensor]:
    """The fields of a case: every code may occur, and neighbouring scales differ up to 8-fold."""
    return FIELDS[case.format](Draw(case))


class Draw:
    """Random fields of a case: codes are uniform, scales uniform in their logarithm."""

    def __init__(self, case: StoredCase) -> None:
        self.case, self.random = case, np.random.default_rng([case.seed, case.k, case.n])
        self.n, self.k, self.groups = case.n, case.k, case.k // case.group
        self.wide: torch.dtype = getattr(torch, case.dtype)
        self.special = case.grouping == "special"

    def whole(self, low: int, high: int, *shape: int, dtype: Any = np.uint8) -> torch.Tensor:
        """Integers from low to high - 1."""
        return torch.from_numpy(self.random.integers(low, high, shape).astype(dtype))

    def words(self, *shape: int) -> torch.Tensor:
        """int32 of random bits."""
        return self.whole(-(2**31), 2**31, *shape, dtype=np.int32)

    def scales(self, *shape: int, dtype: torch.dtype = torch.float32, size: float = 0.1) -> torch.Tensor:
        """Numbers between size/8 and size."""
        return torch.from_numpy(size * 8.0 ** self.random.uniform(-1, 0, shape)).to(dtype)


def _of_table(draw: Draw) -> dict[str, torch.Tensor]:
    size = draw.n * draw.k
    count = -(-size // draw.case.blocks[1])
    codes = {"codes": draw.whole(0, 256, -(-size // 2), 1)}
    if not draw.special:
        return codes | {"absmax": draw.scales(count)}
    nested = {"absmax_codes": draw.whole(0, 256, count), "absmax2": draw.scales(-(-count // 256))}
    return codes | nested | {"offset": torch.tensor(0.15)}


def _of_bitsandbytes(draw: Draw) -> dict[str, torch.Tensor]:
    return {"codes": draw.whole(-127, 128, draw.n, draw.k, dtype=np.int8), "absmax": draw.scales(draw.n)}


def _of_torchao(draw: Draw) -> dict[str, torch.Tensor]:
    return {"codes": draw.whole(-128, 128, draw.n, draw.k, dtype=np.int8), "scale": draw.scales(draw.n, size=0.001)}


def _of_fp8(draw: Draw) -> dict[str, torch.Tensor]:
    codes = draw.whole(0, 127, draw.n, draw.k) + 128 * draw.whole(0, 2, draw.n, draw.k)  # code 127 is NaN
    rows, columns = draw.case.blocks
    scale = draw.scales(draw.n // rows, draw.k // columns, size=0.001)
    return {"codes": codes.view(torch.float8_e4m3fn), "scale": scale}


def _of_int4(draw: Draw) -> dict[str, torch.Tensor]:
    zero = {"zero": draw.whole(-8, 8, draw.n, draw.groups, dtype=np.int8)} if draw.special else {}
    codes = draw.whole(-8, 8, draw.n, draw.k, dtype=np.int8)
    return {"codes": codes, "scale": draw.scales(draw.n, draw.groups, dtype=draw.wide, size=0.02)} | zero


def _of_hqq(draw: Draw) -> dict[str, torch.Tensor]:
    group, count = draw.case.group, draw.n * draw.k // draw.case.group
    rows, columns = (group, count) if draw.special else (count, group)
    shape = (1, columns) if draw.special else (rows, 1)
    zero = torch.from_numpy(draw.random.uniform(2, 13, shape)).to(draw.wide)
    scale = draw.scales(*shape, dtype=draw.wide, size=0.02)
    return {"codes": draw.whole(0, 256, rows // 2, columns), "scale": scale, "zero": zero}


def _of_words(draw: Draw, *codes: int) -> dict[str, torch.Tensor]:
    scales = draw.scales(draw.groups, draw.n, dtype=torch.float16, size=0.02)
    return {"qweight": draw.words(*codes), "qzeros": draw.words(draw.groups, draw.n // 8), "scales": scales}


def _of_gptq(draw: Draw) -> dict[str, torch.Tensor]:
    group = draw.random.permutation(np.arange(draw.k) // draw.case.group)  # columns in the order of their activation
    return _of_words(draw, draw.k // 8, draw.n) | {"g_idx": torch.from_numpy(group.astype(np.int32))}


def _of_awq(draw: Draw) -> dict[str, torch.Tensor]:
    return _of_words(draw, draw.k, draw.n // 8)


FIELDS: Mapping[str, Callable[[Draw], dict[str, torch.Tensor]]] = {
    "nf4": _of_table,
    "fp4": _of_table,
    "int8_bitsandbytes": _of_bitsandbytes,
    "int8_torchao": _of_torchao,
    "fp8": _of_fp8,
    "int4": _of_int4,
    "hqq": _of_hqq,
    "gptq": _of_gptq,
    "awq": _of_awq,
}
