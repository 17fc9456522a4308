"""The imports of a script: where a library has something, and which modules the lines of the script need."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from conformance.reproducer.code_owner import DEEPER, SUITE
from conformance.reproducer.expressions import REFERENCE

SUITES = (*SUITE, f"{REFERENCE}.")  # a script imports what the target has, not what is behind it here


def deeper_modules(lines: list[str]) -> list[str]:
    """The modules of torch in these lines that `import torch` leaves out."""
    text = "\n".join(lines)
    return [name for name in DEEPER if re.search(rf"\b{re.escape(name)}\.\w+\(", text)]


def is_used(line: str, body: str) -> bool:
    """Whether a definition uses a name that an import binds."""
    names = line.rpartition("import ")[2].split(", ")
    return any(re.search(rf"\b{re.escape(name.rpartition(' as ')[2])}\b", body) for name in names)


def is_local(line: str) -> bool:
    """Whether an import finds its module in the current folder only."""
    module = line.split()[1].partition(".")[0]
    if module in sys.modules and getattr(sys.modules[module], "__spec__", None) is None:
        return False
    spec = importlib.util.find_spec(module)
    return bool(spec and spec.origin and Path(spec.origin).is_relative_to(Path.cwd())) and "site-packages" not in str(
        spec and spec.origin
    )


def resolved(module: str, name: str = "") -> Any:
    found: Any = importlib.import_module(module)
    for part in filter(None, name.split(".")):
        found = getattr(found, part)
    return found


def public_place(module: str, name: str) -> tuple[str, str] | None:
    """Where a library has what a target has under another name: the shortest package, and the name there."""
    thing = getattr(importlib.import_module(module), name)
    own, said = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    if not isinstance(own, str) or own == module or not said.isidentifier() or f"{own}.".startswith(SUITES):
        return None
    parts = own.split(".")
    for count in range(1, len(parts) + 1):
        package = ".".join(parts[:count])
        try:
            if getattr(importlib.import_module(package), said, None) is thing:
                return package, said
        except Exception:  # noqa: BLE001  (then that package does not have it)
            continue
    return None
