"""The matrix of codes of a packed weight, by its format."""

from optimized.packed import eight_bit_codes, four_bit_tables, word_codes
from optimized.packed.code_matrix import CodeMatrix
from reference.packed_weight import PackedWeight

BY_BYTES = {
    "int8_bitsandbytes": eight_bit_codes.int8_bitsandbytes,
    "int8_torchao": eight_bit_codes.int8_torchao,
    "int4": eight_bit_codes.int4,
    "fp8": eight_bit_codes.fp8,
    "gptq": word_codes.gptq,
    "awq": word_codes.awq,
    "hqq": word_codes.hqq,
}


def why_not_tiled(weight: PackedWeight) -> str | None:
    """The reason why the numbers of a packed weight are not computed in tiles, or None.

    The reference then computes all of them at once.
    """
    if 0 in weight.shape:
        return f"a weight {list(weight.shape)} has no elements"
    if weight.format in four_bit_tables.TABLES:
        return four_bit_tables.why_not_tiled(weight.shape, weight.options)
    return None if weight.format in BY_BYTES else f"{weight.format} has no tiles"


def code_matrix(weight: PackedWeight) -> CodeMatrix:
    """The codes of a packed weight as a matrix, in the weight's memory; for which `why_not_tiled` has no reason."""
    if weight.format in four_bit_tables.TABLES:
        return four_bit_tables.code_matrix(weight.format, weight.fields, weight.shape, weight.options)
    return BY_BYTES[weight.format](weight.fields, weight.shape, weight.options)
