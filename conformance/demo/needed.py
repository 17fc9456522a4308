"""What a demo needs beyond the core: optional packages, and modules of the user's that have some names."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from conformance.errors import UsageError


def packages(needed: Mapping[str, str]) -> None:
    """See that these packages are installed, before anything runs.

    Args:
        needed: the extra that installs each.
    Raises:
        UsageError: naming what is missing and the command that installs it.
    """
    missing = {name: extra for name, extra in needed.items() if importlib.util.find_spec(name) is None}
    if missing:
        extras = ",".join(sorted(set(missing.values())))
        raise UsageError(f"the demo needs {', '.join(missing)}: pip install 'loraspec[{extras}]'")


def module(name: str, names: Sequence[str], what: str, otherwise: str = "") -> Any:
    """A module that has all these names.

    Args:
        what: it is called in an error.   otherwise: what else would have been right.
    Raises:
        UsageError: if it does not import or lacks one of them.
    """
    try:
        found = importlib.import_module(name)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{what} {name!r} does not import: {error}") from error
    missing = [wanted for wanted in names if not hasattr(found, wanted)]
    if missing:
        raise UsageError(f"{what} {name!r} has no {', '.join(missing)}{otherwise}")
    return found
