"""The mutants of a source file, with names that survive edits elsewhere, and copies of the packages with a mutant."""

from __future__ import annotations

import ast
import hashlib
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaigns.mutation.operators import OPERATORS

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("reference", "optimized")
EXEMPT = ("__init__.py",)  # these files only list exports


@dataclass(frozen=True)
class Mutant:
    """One small edit of one file.

    Attributes:
        file: path relative to the root.   function: qualified name of the enclosing function, empty at module level.
        operator: the operator's name.   before, after: source of the node before and after the edit.
        line: line of the node.   ordinal: number that distinguishes equal edits in one function.
        text: the unedited file.   span: byte offsets of the node in it.   new: the text that replaces the node.
        lines: first line of the statement around the node and the line after its last, without a block's body.
        imported: whether the node runs when the file is imported, not when a function is called.
    """

    file: str
    function: str
    operator: str
    before: str
    after: str
    line: int
    ordinal: int
    text: str
    span: tuple[int, int]
    new: str
    lines: tuple[int, int] = (0, 0)
    imported: bool = False

    @property
    def id(self) -> str:
        """The mutant's name, which does not change when lines are added elsewhere."""
        again = f" #{self.ordinal}" if self.ordinal else ""
        return f"{self.file} {self.function or '<module>'} {self.operator}: {self.before} → {self.after}{again}"

    @property
    def place(self) -> float:
        """A number from 0 to 1 that depends only on the name; mutants are judged in this order."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:6], "big") / 2**48

    @property
    def source(self) -> str:
        """The edited file."""
        raw, (start, end) = self.text.encode(), self.span
        return (raw[:start] + self.new.encode() + raw[end:]).decode()

    @property
    def valid(self) -> bool:
        """Whether the edited file is valid Python; the replacement may not fit the node's position."""
        try:
            compile(self.source, self.file, "exec")
        except SyntaxError:
            return False
        return True

    @property
    def package(self) -> str:
        """The package that contains the edit."""
        return self.file.partition("/")[0]


def mutants_of(path: Path) -> list[Mutant]:
    """Return every mutant of one file, in source order."""
    text = path.read_text(encoding="utf-8")
    file = path.relative_to(ROOT).as_posix()
    starts = list(itertools.accumulate((len(line.encode()) for line in text.splitlines(keepends=True)), initial=0))
    found: list[Mutant] = []
    counts: dict[tuple[str, ...], int] = {}
    tree = ast.parse(text)
    places = _places(tree)
    for function, node in _walk(tree, ""):
        span = (starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset)
        for operator, apply in OPERATORS.items():
            for edited in apply(node):
                before, new = ast.unparse(node), ast.unparse(ast.fix_missing_locations(edited))
                key = (function, operator, _short(before), _short(new))
                counts[key] = counts.get(key, -1) + 1
                if before != new:
                    placed = _placed(node, new)
                    found.append(Mutant(file, *key, node.lineno, counts[key], text, span, placed, *places[node]))
    return found


def all_mutants(packages: tuple[str, ...] = PACKAGES, named: str = "") -> list[Mutant]:
    """Return the mutants of every file of the packages; of one file if the name that is wanted begins with it."""
    files = [p for package in packages for p in sorted((ROOT / package).rglob("*.py")) if p.name not in EXEMPT]
    wanted = ROOT / named.partition(" ")[0]
    return [mutant for path in ([wanted] if wanted in files else files) for mutant in mutants_of(path)]


def write_copy(folder: Path, mutant: Mutant | None) -> None:
    """Copy both packages into a folder; the mutant replaces its file."""
    for package in PACKAGES:
        # with the compiled files, which keep their sources' times: all but the mutant's are imported from them
        shutil.copytree(ROOT / package, folder / package)
    if mutant is not None:
        path = folder / mutant.file
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
        path.write_text(mutant.source, encoding="utf-8")


def _walk(node: ast.AST, function: str) -> Iterator[tuple[str, Any]]:
    """Yield every node that takes part in a computation; skip annotations, docstrings, messages and export lists."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases", "type_params", "ctx", "op", "ops"):
            continue
        children = value if isinstance(value, list) else [value]
        for child in children:
            if not isinstance(child, ast.AST) or _said_not_done(child):
                continue
            inside = function
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inside = f"{function}.{child.name}".lstrip(".")
            if isinstance(child, ast.expr | ast.stmt) and not isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield function, child
            if not isinstance(child, ast.Raise):
                yield from _walk(child, inside)


def _places(tree: ast.AST) -> dict[ast.AST, tuple[tuple[int, int], bool]]:
    """For each node, the lines of the statement around it and whether it runs at import."""
    found: dict[ast.AST, tuple[tuple[int, int], bool]] = {}

    def visit(node: Any, lines: tuple[int, int], imported: bool) -> None:
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            # a block's own statements have lines of their own; what stands in one line shares it
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
            lines = (node.lineno, last + 1)
        found[node] = (lines, imported)
        own = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, lines, imported and not (own and field == "body"))

    visit(tree, (0, 0), imported=True)
    return found


def _said_not_done(node: ast.AST) -> bool:
    """Whether a node is text (a docstring, an f-string) or an import or export, which clauses do not judge exactly."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
        return True
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _placed(node: Any, new: str) -> str:
    """Return the new source as it replaces the node: statements are indented, expressions get parentheses."""
    return new.replace("\n", "\n" + " " * node.col_offset) if isinstance(node, ast.stmt) else f"({new})"


def _short(source: str, most: int = 90) -> str:
    line = " ".join(source.split())
    return line if len(line) <= most else line[: most - 1] + "…"
