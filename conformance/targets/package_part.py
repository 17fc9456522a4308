"""Import of a part of a package whose other parts need what is not installed, such as libraries for a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


@contextmanager
def without_init(package: str, stubs: Mapping[str, Mapping[str, Any]], *, stay: bool = False) -> Iterator[None]:
    """A region in which modules of a package are imported without the `__init__` of any package above them.

    Args:
        package: the name of an installed package, which need not import.
        stubs: by name of a module, of the package or of another that need not be installed, the names that a stub of
            it holds.
        stay: whether modules of the package stay importable, unless it was imported before. torch.compile and pickle
            look a class up in its module, by name, and so would import the whole package.
    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    roots = {package, *(name.partition(".")[0] for name in stubs)}
    before = _modules_of(roots)
    for name in before:
        del sys.modules[name]
    bare = _Bare(package, Path(next(iter(found.submodule_search_locations))))
    sys.meta_path.insert(0, bare)
    try:
        for root in roots - {package}:
            sys.modules[root] = ModuleType(root, "A package of stubs.")
        for name, held in stubs.items():
            sys.modules[name] = ModuleType(name, "A stub.")
            vars(sys.modules[name]).update(held)
        yield
    finally:
        sys.meta_path.remove(bare)
        staying = stay and not any(name.partition(".")[0] == package for name in before)
        for name in _modules_of(roots - {package} if staying else roots):
            del sys.modules[name]
        sys.modules.update(before)


def _modules_of(roots: Collection[str]) -> dict[str, ModuleType]:
    """The imported modules of some packages, by name."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in roots}


def stub_of_types() -> dict[str, Any]:
    """The contents of a stub that holds an empty class under every name that is asked for."""
    return {"__getattr__": lambda name: type(name, (), {})}


class _Bare:
    """A finder that gives each folder of a package as a package without code."""

    def __init__(self, package: str, folder: Path) -> None:
        self.package, self.folder = package, folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        """The spec of a folder below the package; None for its files, which are found as usual."""
        if name.partition(".")[0] != self.package:
            return None
        folder = self.folder.joinpath(*name.split(".")[1:])
        if not folder.is_dir():
            return None
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        return spec


def imported(name: str) -> Any:
    """A module by its name."""
    return importlib.import_module(name)
