"""Rounding of a tile under Triton's interpreter, which represents bfloat16 as raw 16-bit integers.

numpy would multiply those integers, and the interpreter's cast to bfloat16 truncates. So products use float32 tiles
with the rounded values, and bfloat16 is converted through its bits, which are the upper half of a float32. These are
plain functions, because each nested `triton.jit` call costs 1 ms in the interpreter.
"""
# mypy: allow-untyped-calls

import triton.language as tl


def as_operand(tile, OPERAND):
    """The tile's values rounded to OPERAND, in float32 (float64 for float64)."""
    rounded = tile.dtype == OPERAND
    tile = _exact(tile)
    if tl.float64 == OPERAND:
        return tile.to(tl.float64)
    tile = tile.to(tl.float32)
    if rounded:
        return tile
    if tl.bfloat16 == OPERAND:
        return (_upper_half(tile) << 16).to(tl.float32, bitcast=True)
    return tile.to(OPERAND).to(tl.float32)


def as_stored(tile, DTYPE):
    """The tile rounded to nearest even in DTYPE."""
    if tl.float64 == DTYPE:
        return tile.to(tl.float64)
    tile = tile.to(tl.float32)
    if tl.bfloat16 == DTYPE:
        return _upper_half(tile).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return tile.to(DTYPE)


def _exact(tile):
    """The tile's values in a dtype that numpy supports."""
    if tile.dtype == tl.bfloat16:
        return (tile.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return tile


def _upper_half(tile):
    """The upper 16 bits of a float32 tile rounded to nearest even, as uint32; every NaN becomes 0x7FC0."""
    is_nan = tile != tile  # noqa: PLR0124 - true for NaN only
    # in 64 bits, where the carry fits and the interpreter does not check for overflow
    bits = tl.where(is_nan, 0.0, tile).to(tl.uint32, bitcast=True).to(tl.uint64)
    rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    return tl.where(is_nan, 0x7FC0, rounded).to(tl.uint32)
