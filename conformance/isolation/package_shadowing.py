"""The check against shadowing: `reference`, `optimized` and `conformance` must come from this distribution."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from conformance.errors import UsageError

IMPORTED = ("conformance", "reference")  # what the suite itself imports
PACKAGES = (*IMPORTED, "optimized")
HERE = Path(__file__).resolve().parents[2]


def check(targets: Iterable[str] = ()) -> None:
    """Check that the suite imports its own packages, and that a target of that name is this distribution's too.

    Another package `optimized` on the import path, or one that `loraspec.distribution` has overruled, matters only
    where it may be the target that the user means.

    Raises:
        UsageError: naming the package, the path that shadows it, and the expected path.
    """
    found = [(name, _location(importlib.util.find_spec(name))) for name in IMPORTED]
    for name in {target.partition(":")[0].partition(".")[0] for target in targets} & set(PACKAGES):
        found.append((name, _location(PathFinder.find_spec(name, sys.path))))
    for name, place in found:
        if place not in (None, HERE / name):
            raise UsageError(
                f"the package {name!r} is {place}, which shadows this distribution's {HERE / name}: "
                "rename it or run from another folder"
            )


def _location(spec: ModuleSpec | None) -> Path | None:
    """The folder of a package; None for a folder without __init__.py, which never wins over a package."""
    if spec is None or not spec.origin:
        return None
    file = Path(spec.origin).resolve()
    return file.parent if file.name == "__init__.py" else file
