"""The bits to which the integers of each remote module are quantised."""

import difflib
from collections.abc import Collection, Mapping


def bits_of(n_bits: int | Mapping[str, int], names: Collection[str]) -> dict[str, int]:
    """The bits of each remote module, which a mapping names, else 8.

    Raises:
        ValueError: for the name of a module that does not run remotely.
    """
    if not isinstance(n_bits, Mapping):
        return dict.fromkeys(names, n_bits)
    for name in n_bits:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f": did you mean {near[0]!r}?" if near else f": expected one of {', '.join(names)}"
            raise ValueError(f"n_bits names {name!r}, which does not run remotely{hint}")
    return {name: n_bits.get(name, 8) for name in names}
