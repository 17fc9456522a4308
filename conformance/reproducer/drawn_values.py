"""The values that a check draws from its case, as literals: with them, a script needs no code to draw the values."""

from __future__ import annotations

import ast
import copy
import dataclasses
import pprint
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import reference
from conformance.cases.case import Case
from conformance.cases.reproducer_marks import DRAWING, full_name
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.formats import Array
from conformance.reproducer.module_source import Definition, Lines, literal, source
from conformance.specification.clause import Clause
from conformance.target.check_case import check_case
from conformance.target.subject import Subject
from conformance.target.target import Target

Drawn = Array | dict[str, Array]
MOST = 1000  # literal numbers in one script; a script that needs more draws them from the seed, as the suite does
ON_RANKS = "distributed"  # the group whose checks also draw values on ranks, where nothing records them
LOOKED_UP = '''
def {name}({arguments}) -> {returns}:
    """{summary}

    This script looks the values up; the suite draws them.
    """
    return {found}
'''


def is_drawing(definitions: Iterable[Definition]) -> bool:
    """Whether one of these definitions is a function in `DRAWING`."""
    drawing = set(map(full_name, DRAWING))
    return not drawing.isdisjoint(definition.full_name for definition in definitions)


def looked_up(clause: Clause, subject: Subject, case: Case) -> dict[str, Definition]:
    """Definitions that replace the functions in `DRAWING`, by full name; empty if they are too many, or drawn on ranks.

    The check runs on the reference to record the values. The script then works for a fixed target, which may need
    more values than the defective one.
    """
    if clause.group == ON_RANKS:
        return {}
    # Target.of would take the judged target's patches for the originals
    right = [s for s in Target("reference", reference, subject.device).subjects(clause) if s.name == subject.name]
    if not right:
        return {}
    with _recorded() as tables:
        try:
            check_case(
                clause,
                dataclasses.replace(
                    right[0], dropout_positions=subject.dropout_positions, conventions=subject.conventions
                ),
                case,
            )
        except Inconclusive:
            pass  # any correct target is inconclusive at the same place
        except Exception:  # noqa: BLE001  (after an error the recorded values may be incomplete)
            return {}
    stand_in: dict[str, Definition] = {}
    for module, table in tables.items():
        if table and sum(map(_size, table.values())) <= MOST:
            stand_in |= {f"{module}.{d.names[0]}": d for d in _definitions(module, table)}
    return stand_in


@contextmanager
def _recorded() -> Iterator[dict[str, dict[str, Drawn]]]:
    """Record the values drawn inside the block, by module and by the case as text."""
    tables: dict[str, dict[str, Drawn]] = {name: {} for name in _by_module()}
    originals = [(sys.modules[module], name) for module, names in _by_module().items() for name in names]
    before = [getattr(module, name) for module, name in originals]

    def noting(drawing: Any, table: dict[str, Drawn]) -> Any:
        def noted(case: Case, *arguments: Any) -> Drawn:
            values: Drawn = drawing(case, *arguments)
            table[str(case)] = copy.deepcopy(values)  # a check may modify the values in place
            return values

        return noted

    try:
        for (module, name), drawing in zip(originals, before, strict=True):
            setattr(module, name, noting(drawing, tables[module.__name__]))
        yield tables
    finally:
        for (module, name), drawing in zip(originals, before, strict=True):
            setattr(module, name, drawing)


def _by_module() -> dict[str, list[str]]:
    """The names of the functions in `DRAWING` by module; a case uses one function of each module."""
    found: dict[str, list[str]] = {}
    for function in DRAWING:
        found.setdefault(function.__module__, []).append(function.__name__)
    return found


def _size(drawn: Drawn) -> int:
    return drawn.size if isinstance(drawn, np.ndarray) else sum(values.size for values in drawn.values())


def _definitions(module: str, table: dict[str, Drawn]) -> Iterator[Definition]:
    where = source(module)
    rows = "".join(f"    {literal(case)}: {_expression(drawn)},\n" for case, drawn in table.items())
    text = f"DRAWN = {{\n{rows}}}\n"
    given = {"DRAWN": Definition(where, ast.parse(text).body[0], Lines(text))}
    for name in _by_module()[module]:
        found = where.find(name)
        assert isinstance(found, Definition)
        assert isinstance(found.node, ast.FunctionDef)
        first = found.node.args.args[0].arg
        copied = f"{{name: values.copy() for name, values in DRAWN[str({first})].items()}}"
        alone = isinstance(next(iter(table.values())), np.ndarray)
        function = LOOKED_UP.format(
            name=name,
            arguments=ast.unparse(found.node.args),
            returns=ast.unparse(found.node.returns) if found.node.returns else "Any",
            summary=(ast.get_docstring(found.node) or "The values of a case.").partition("\n")[0],
            found=f"DRAWN[str({first})].copy()" if alone else copied,
        )
        yield Definition(where, ast.parse(function).body[0], Lines(function), given)


def _expression(drawn: Drawn) -> str:
    if isinstance(drawn, dict):
        parts = "".join(f'        "{name}": {_expression(values)},\n' for name, values in drawn.items())
        return f"{{\n{parts}    }}"
    numbers = pprint.pformat(drawn.tolist(), width=110, compact=True)
    numbers = re.sub(r"\b(nan|inf)\b", r"np.\1", numbers)
    shaped = "" if drawn.size else f".reshape({drawn.shape})"
    return f"np.array({numbers}){shaped}"
