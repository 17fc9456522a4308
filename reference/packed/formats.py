"""The formats by name."""

import difflib

from .eight_bit_rows import BITSANDBYTES, TORCHAO
from .float8 import FP8
from .format import Format
from .four_bit_tables import FP4_FORMAT, NF4_FORMAT
from .gptq_awq import AWQ, GPTQ
from .grouped_int4 import INT4
from .hqq import HQQ

FORMATS = {f.name: f for f in (NF4_FORMAT, FP4_FORMAT, BITSANDBYTES, TORCHAO, FP8, INT4, GPTQ, AWQ, HQQ)}


def format_named(name: object) -> Format:
    """The format of a name.

    Raises:
        ValueError: for another name, with the nearest that there is.
    """
    if not isinstance(name, str) or name not in FORMATS:
        near = difflib.get_close_matches(str(name), FORMATS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ":"
        raise ValueError(f"format is {name!r}{hint} expected {', '.join(FORMATS)}")
    return FORMATS[name]
