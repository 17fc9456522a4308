"""This distribution's packages, imported from its own folder whatever the import path leads to.

A repository may have a package `conformance` or `reference` of its own. It comes first on the import path of its tests
and of commands that run in its folder, so the suite's packages are pinned before they are used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGES = ("conformance", "reference")  # what the suite imports; `optimized` is a target like any other


def folder() -> Path:
    """The folder of the package `conformance`: two levels up in a checkout, beside this package where installed."""
    here = Path(__file__).resolve().parent
    return here.parents[1] if here.parent.name == "front" else here.parent / PACKAGES[0]


class PinnedPackages:
    """A finder that leads to this distribution's packages."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The place of a pinned package; None for any other module."""
        del path, target
        if name not in PACKAGES:
            return None
        home = folder().parent / name
        return spec_from_file_location(name, home / "__init__.py", submodule_search_locations=[str(home)])


def pin() -> None:
    """Lead every later import of the pinned packages to this distribution.

    Raises:
        ImportError: if another package with such a name is imported already.
    """
    for name in PACKAGES:
        module = sys.modules.get(name)
        if module is None:
            continue
        places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None) or "no file"]
        if folder().parent / name not in {Path(place).resolve() for place in places}:
            raise ImportError(
                f"the package {name!r} is imported from {places[0]}, but loraspec needs its own, "
                f"{folder().parent / name}: use loraspec in a process that does not import the other",
                name=name,
            )
    if PinnedPackages not in sys.meta_path:
        sys.meta_path.insert(0, PinnedPackages)
