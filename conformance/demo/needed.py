"""The requirements of a demo: optional packages, and user modules with certain names."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from conformance.errors import UsageError


def packages(needed: Mapping[str, str]) -> None:
    """Check that these packages are installed, before anything runs.

    Args:
        needed: for each package, the extra that installs it.
    Raises:
        UsageError: naming the missing packages and the command that installs them.
    """
    missing = {name: extra for name, extra in needed.items() if importlib.util.find_spec(name) is None}
    if missing:
        extras = ",".join(sorted(set(missing.values())))
        raise UsageError(f"the demo needs {', '.join(missing)}: pip install 'loraspec[{extras}]'")


def module(name: str, names: Sequence[str], what: str, otherwise: str = "") -> Any:
    """Import a module and check that it has all these names.

    Args:
        what: the kind of module, for error messages.   otherwise: the end of the message about missing names.
    Raises:
        UsageError: if the module does not import or lacks a name.
    """
    try:
        found = importlib.import_module(name)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{what} {name!r} does not import: {error}") from error
    missing = [wanted for wanted in names if not hasattr(found, wanted)]
    if missing:
        raise UsageError(f"{what} {name!r} has no {', '.join(missing)}{otherwise}")
    return found
