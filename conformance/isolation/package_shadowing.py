"""The check against shadowing: `reference`, `optimized` and `conformance` must come from this distribution."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

from conformance.errors import UsageError

PACKAGES = ("conformance", "reference", "optimized")
HERE = Path(__file__).resolve().parents[2]


def check(first: Iterable[str | Path] = ()) -> None:
    """Check that the import path, with `first` ahead of it, leads to this distribution's three packages.

    Raises:
        UsageError: naming the package, the path that shadows it, and the expected path.
    """
    path = [*map(str, first), *sys.path]
    for name in PACKAGES:
        found = _location(name, path)
        if found is not None and found != HERE / name:
            raise UsageError(
                f"the package {name!r} is {found}, which shadows this distribution's {HERE / name}: "
                "rename it or run from another folder"
            )


def _location(name: str, path: list[str]) -> Path | None:
    # a folder without __init__.py never wins over a package, so only specs with an origin count
    loaded = getattr(sys.modules.get(name), "__file__", None)
    spec = PathFinder.find_spec(name, path)
    if (spec is None or not spec.origin) and loaded is None:
        spec = importlib.util.find_spec(name)
    origin = spec.origin if spec is not None and spec.origin else loaded
    if not origin:
        return None
    file = Path(origin).resolve()
    return file.parent if file.name == "__init__.py" else file
