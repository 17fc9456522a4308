"""Bundles: the writer finds the definitions that code refers to and writes them into one module that does the same."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.reproducer import module_source
from conformance.reproducer.module_source import Definition, Import, NoSource, literal, source
from conformance.reproducer.module_writer import Text
from conformance.reproducer.source_bundle import Bundle

FILES = {
    "__init__": "from .shapes import Square as Box\n",
    "shapes": '''
from __future__ import annotations
import math
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from nowhere import Nothing

SIDE = 3  # of a square
UNIT, ZERO = 1, 0


class Shape:
    """What has an area."""

    kind = "shape"

    def area(self) -> Nothing:
        return ZERO

    def circumference(self):
        return math.tau


class Square(Shape):
    """With equal sides."""

    # its sides
    sides = [SIDE for _ in range(4)]

    def area(self, SIDE=SIDE):  # noqa: ARG002  (its own)
        return SIDE * SIDE * UNIT

    def perimeter(self):
        return sum(self.sides)


def helper(n):
    return n + SIDE
''',
    "other": '''
import functools
from own import shapes
from own.shapes import helper as aid


def helper(n):
    return 100 * n


def registered(f):
    return f


@functools.cache
def made(n):
    """Made of everything."""
    from own.shapes import Square

    SIDE = 1000  # hides the constant of that name here
    registered("left out")
    area = lambda shape, helper=helper: shape.area() + helper(1)  # type: ignore[misc]
    return [area(Square()), aid(n), shapes.SIDE, SIDE, {helper: helper for helper in "a"}]


def from_outside():
    import own

    return own.Box().area()


EARLY = made(1)


def uses_early():
    return EARLY


def passes_a_module_on():
    return [shapes]
''',
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package `own` that the writer treats as part of this distribution."""
    registered = SimpleNamespace(__module__="own.other", __qualname__="registered")
    (tmp_path / "own").mkdir()
    for name, text in FILES.items():
        (tmp_path / "own" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module_source, "PACKAGES", ("own",))
    monkeypatch.setattr("conformance.reproducer.source_bundle.LEFT_OUT", [registered])
    source.cache_clear()
    yield
    source.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        del sys.modules[name]


def written(name: str, *reserved: str) -> tuple[str, Any]:
    """The text of the bundle of a function of `own.other`, and the function that this text defines."""
    root = source("own.other").find(name)
    assert isinstance(root, Definition)
    text = Text(Bundle([root]), reserved)
    space: dict[str, Any] = {}
    exec(f"from __future__ import annotations\n{text.imports}\n{text.body}", space)
    return text.body, space[text.name(root)]


@pytest.mark.usefixtures("own")
def test_code_from_several_modules_does_the_same_in_one_module() -> None:
    text, made = written("made")
    assert made(1) == [3 * 3 + 100, 4, 3, 1000, {"a": "a"}]
    assert "own" not in {name for node in ast.walk(ast.parse(text)) for name in names(node)}
    assert text.startswith("shapes_SIDE = 3  # of a square\n\n\n@functools.cache\ndef made(n):\n")
    assert "Made of everything" in text


def names(node: ast.AST) -> list[str]:
    """The name that a node refers to, as a list; empty for nodes that are not names."""
    return [node.id] if isinstance(node, ast.Name) else []


@pytest.mark.usefixtures("own")
def test_comments_and_docstrings_are_kept_and_unused_methods_are_dropped() -> None:
    text, _ = written("made")
    for kept in ("SIDE = 3  # of a square", "    # its sides\n", "def area(self, SIDE=shapes_SIDE):  # its own"):
        assert kept.replace("shapes_SIDE", "SIDE") in text.replace("shapes_SIDE", "SIDE")
    for gone in ("circumference", "perimeter", "type: ignore", "noqa", "left out", "nowhere"):
        assert gone not in text
    assert "\n\n\n\n" not in text


@pytest.mark.usefixtures("own")
def test_a_clashing_name_is_prefixed_with_its_modules_name() -> None:
    text, _ = written("made", "aid", "helper")
    assert "def other_helper(n)" in text
    assert "def shapes_helper(n)" in text
    assert "shapes_SIDE = 3" in text  # the referring function has a local SIDE


@pytest.mark.usefixtures("own")
def test_definitions_come_before_module_level_code_that_needs_them() -> None:
    _, uses_early = written("uses_early")
    assert uses_early()[0] == 109


@pytest.mark.usefixtures("own")
def test_a_name_that_the_package_reexports_is_resolved() -> None:
    _, from_outside = written("from_outside")
    assert from_outside() == 9


@pytest.mark.usefixtures("own")
def test_a_module_as_a_value_cannot_be_written_out() -> None:
    with pytest.raises(NoSource, match=r"own.other uses as a value the module shapes"):
        written("passes_a_module_on")


@pytest.mark.parametrize(
    ("imported", "name", "statement"),
    [
        (Import("numpy", name="np"), "np", "import numpy as np"),
        (Import("math", name="math"), "math", "import math"),
        (Import("torch.nn", name="torch"), "torch", "import torch.nn"),
        (Import("torch", "nn", "nn"), "nn", "from torch import nn"),
        (Import("torch", "nn", "nn"), "own_nn", "from torch import nn as own_nn"),
    ],
)
def test_an_import_becomes_an_import_statement(imported: Import, name: str, statement: str) -> None:
    assert imported.statement(name) == statement


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.1, "it's", 'a "b"', "*_proj", "é\n", (1,), (), [1, (2, "x")], {"a": [1]}]
)
def test_a_literal_evaluates_to_the_value(value: object) -> None:
    assert ast.literal_eval(literal(value)) == value


def test_infinity_is_written_as_a_call_and_an_object_is_refused() -> None:
    assert literal(float("-inf")) == 'float("-inf")'
    with pytest.raises(NoSource):
        literal(object())
