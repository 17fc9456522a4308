"""What a check draws from its case, as literals: a script that holds the numbers needs no code to draw them."""

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
MOST = 1000  # numbers in one script; beyond them it draws them from the seed, as the suite does
LOOKED_UP = '''
def {name}({arguments}) -> {returns}:
    """{summary}

    Here they are not drawn but looked up.
    """
    return {found}
'''


def is_drawing(definitions: Iterable[Definition]) -> bool:
    """Whether any of `DRAWING` is among these."""
    drawing = set(map(full_name, DRAWING))
    return not drawing.isdisjoint(definition.full_name for definition in definitions)


def looked_up(clause: Clause, subject: Subject, case: Case) -> dict[str, Definition]:
    """Definitions that stand in for the functions of `DRAWING`, by their full names; none where they would be large.

    The check is run on the reference, so that a target which is right finds its numbers as well as the defective one.
    """
    # not Target.of, which would take what the judged target replaced for the originals
    right = [s for s in Target("reference", reference, subject.device).subjects(clause) if s.name == subject.name]
    if not right:
        return {}
    with _recorded() as tables:
        try:
            check_case(clause, dataclasses.replace(right[0], dropout_positions=subject.dropout_positions), case)
        except Inconclusive:
            pass  # so it will be for any right target, and at the same place
        except Exception:  # noqa: BLE001  (whatever ends it, not everything was drawn)
            return {}
    stand_in: dict[str, Definition] = {}
    for module, table in tables.items():
        if table and sum(map(_size, table.values())) <= MOST:
            stand_in |= {f"{module}.{d.names[0]}": d for d in _definitions(module, table)}
    return stand_in


@contextmanager
def _recorded() -> Iterator[dict[str, dict[str, Drawn]]]:
    """What is drawn inside the block: by module, and by the case as text."""
    tables: dict[str, dict[str, Drawn]] = {name: {} for name in _by_module()}
    originals = [(sys.modules[module], name) for module, names in _by_module().items() for name in names]
    before = [getattr(module, name) for module, name in originals]

    def noting(drawing: Any, table: dict[str, Drawn]) -> Any:
        def noted(case: Case, *arguments: Any) -> Drawn:
            values: Drawn = drawing(case, *arguments)
            table[str(case)] = copy.deepcopy(values)  # a check may change what it is given
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
    """The names of the functions of `DRAWING` by their module; of one module's, each case needs one."""
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
