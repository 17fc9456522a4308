"""Parts of packages: no `__init__` runs, stubs stand for what is missing, and modules stay importable where asked."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.targets.package_part import imported, without_init

STUBS = {"absent_zoo.utils": {"version": lambda: "stub"}}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that cannot be initialised, with a module that imports another package, which is not installed."""
    folder = tmp_path / "heavy_package" / "kernels"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('initialised')")
    (folder / "__init__.py").write_text("raise RuntimeError('initialised too')")
    (folder / "product.py").write_text("from absent_zoo.utils import version\n\ndef name():\n    return version()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "heavy_package"
    for name in [name for name in sys.modules if name.partition(".")[0] in ("heavy_package", "absent_zoo")]:
        del sys.modules[name]


def test_a_part_is_imported_and_forgotten(package: str) -> None:
    with without_init(package, STUBS):
        assert imported(f"{package}.kernels.product").name() == "stub"
    assert not [name for name in sys.modules if name.startswith((package, "absent_zoo"))]
    with pytest.raises(RuntimeError, match="initialised"):
        importlib.import_module(f"{package}.kernels.product")


def test_a_part_that_stays_can_be_imported_by_its_name(package: str) -> None:
    with without_init(package, STUBS, stay=True):
        part = imported(f"{package}.kernels.product")
    assert importlib.import_module(f"{package}.kernels.product") is part
    assert not [name for name in sys.modules if name.startswith("absent_zoo")]


def test_a_package_that_was_imported_is_there_again(package: str) -> None:
    with without_init(package, STUBS, stay=True):
        first = imported(f"{package}.kernels.product")
    with without_init(package, STUBS, stay=True):
        assert imported(f"{package}.kernels.product") is not first
    assert sys.modules[f"{package}.kernels.product"] is first


def test_a_package_that_is_not_installed_is_named() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match="No module named 'absent_package'"),
        without_init("absent_package", {}),
    ):
        pass
