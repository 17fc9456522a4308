"""Which clauses each known-bad twin fails, as recorded, and which of these sets are of sources that have changed since.

Twins and clauses meet file by file: for a file of twins and a file of clauses a digest of both, of the files beside
them that they import, and of what is recorded is kept with the sets. Where it is no longer the digest of what is there,
those twins are judged by those clauses again. What all groups share (the judge, the drawing of cases) is in no digest:
after a change there the sets are compared as a whole.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from conformance.specification.clause import Clause
from tests.support.twins import CLAUSES, REGISTRY, failed, others

ROOT = Path(__file__).resolve().parents[2]
SETS = ROOT / "tests" / "known_bad" / "recorded.json"
DIGESTS = ROOT / "tests" / "known_bad" / "digests.json"
GATHERING = ("tests.known_bad", "tests.support.twins")  # what registers and loads all of them says nothing of one

Sets = dict[str, list[str]]  # the clauses that a twin fails, by its name
Digests = dict[str, dict[str, str]]  # by the file of the twins and that of the clauses
Met = list[tuple[str, str]]  # twins and the clauses, not their own, that they are judged by
Judged = dict[tuple[str, str], Met]  # by the file of the twins and that of the clauses: which of them fail which


def sets_in(path: Path = SETS) -> Sets:
    """The recorded sets."""
    return dict(json.loads(path.read_text()))


def digests_in(path: Path = DIGESTS) -> Digests:
    """The digests that were recorded with them."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write(path: Path, held: Sets | Digests) -> None:
    """Sorted, an entry a line, so that a change to it can be read."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(held[name], sort_keys=True)}" for name in sorted(held))
    path.write_text(f"{{\n{lines}\n}}\n")


@lru_cache(maxsize=1)
def meetings() -> dict[str, dict[str, Met]]:
    """By file of twins and file of clauses: which twin is judged by which clause."""
    found: dict[str, dict[str, Met]] = {bad.module: defaultdict(list) for bad in REGISTRY.values()}
    for bad in REGISTRY.values():
        for clause in others(bad):
            found[bad.module][clause.source].append((bad.name, clause.id))
    return found


def failing(met: Met) -> Met:
    """Those of the meetings in which the twin does not pass."""
    by_twin: dict[str, list[Clause]] = defaultdict(list)
    for name, clause in met:
        by_twin[name].append(CLAUSES[clause])
    return [(name, clause.id) for name, clauses in by_twin.items() for clause in failed(REGISTRY[name], clauses)]


def said(met: Met, sets: Sets) -> Met:
    """Those in which it is recorded that the twin does not pass, and any that it has not with this file of clauses."""
    names, sources = {name for name, _ in met}, {CLAUSES[clause].source for _, clause in met}
    found = [(name, clause) for name in names for clause in sets.get(name, ()) if clause != REGISTRY[name].clause]
    return sorted((name, clause) for name, clause in found if clause in CLAUSES and CLAUSES[clause].source in sources)


def judged(twins: str, files: Iterable[str]) -> Judged:
    """What the twins of a file fail now of these files of clauses."""
    return {(twins, clauses): failing(meetings()[twins][clauses]) for clauses in files}


def differences(found: Judged, sets: Sets) -> list[str]:
    """In words, where what was judged is not what is recorded."""
    lines = []
    for (twins, clauses), fails in found.items():
        known = said(meetings()[twins][clauses], sets)
        for name, clause in sorted({*fails} ^ {*known}):
            how = "fails, which is not recorded" if (name, clause) in fails else "no longer fails"
            lines.append(f"{name} {how}: {clause}")
    return lines


class Sources:
    """The modules of this project as text.

    Args:
        instead: texts that stand in for those of some modules.
    """

    def __init__(self, instead: Mapping[str, bytes] | None = None) -> None:
        self._instead = instead or {}
        self._closures: dict[str, bytes] = {}

    def stale(self, twins: str, sets: Sets, digests: Digests) -> list[str]:
        """The files of clauses that the twins of a file must be judged by again."""
        kept = digests.get(twins, {})
        return [name for name in meetings()[twins] if kept.get(name) != self.digest(twins, name, sets)]

    def digest(self, twins: str, clauses: str, sets: Sets) -> str:
        """Of all that decides which of these twins fail which of these clauses, and of what is recorded of it."""
        met = meetings()[twins][clauses]
        about = sorted({(name, REGISTRY[name].groups, REGISTRY[name].dtypes) for name, _ in met})
        rest = repr((about, sorted(met), said(met, sets))).encode()
        return hashlib.sha256(self._texts(twins) + self._texts(clauses) + rest).hexdigest()[:16]

    def closure(self, module: str) -> list[str]:
        """A module and those it imports, of the same kind: of twins those of tests, of clauses those of groups."""
        found, waiting = {module: None}, [module]
        while waiting:
            for name in imported(self.text(waiting.pop())):
                if name not in found and is_followed(name, module):
                    found[name] = None
                    waiting.append(name)
        return sorted(found)

    def text(self, module: str) -> bytes:
        """The text of a module of this project."""
        path = _path(module)
        assert path is not None
        return self._instead.get(module) or _content(path)

    def _texts(self, module: str) -> bytes:
        if module not in self._closures:
            together = b"".join(f"{name}\n".encode() + self.text(name) for name in self.closure(module))
            self._closures[module] = hashlib.sha256(together).digest()
        return self._closures[module]


def is_followed(module: str, origin: str) -> bool:
    """Whether an import is followed: of the same package, no list of others, and of groups not what they share."""
    path = _path(module)
    if path is None or path.name == "__init__.py" or module in GATHERING:
        return False
    first, _, rest = module.partition(".")
    if first != origin.partition(".")[0]:
        return False
    return first == "tests" or rest.startswith("clauses.")


@lru_cache(maxsize=1024)
def imported(text: bytes) -> tuple[str, ...]:
    """The modules that a text imports, and the names in them that could be modules."""
    return tuple(_named(ast.parse(text)))


def _named(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@lru_cache(maxsize=1024)
def _content(path: Path) -> bytes:
    return path.read_bytes()


@lru_cache(maxsize=4096)
def _path(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def updated(now: Judged, sets: Sets, digests: Digests) -> tuple[Sets, Digests]:
    """The sets and their digests after some twins were judged by some clauses: what fails, file by file."""
    sources, kept = Sources(), []
    for twins, met_by in meetings().items():
        gone = sources.stale(twins, sets, digests)
        kept += [(twins, clauses) for clauses in met_by if clauses not in gone]
    pairs = {(twins, clauses): said(meetings()[twins][clauses], sets) for twins, clauses in kept} | now
    known: dict[str, set[str]] = {name: {bad.clause} for name, bad in REGISTRY.items()}
    for twins, met_by in meetings().items():
        for clauses, met in met_by.items():
            for name, clause in pairs.get((twins, clauses), said(met, sets)):
                known[name].add(clause)
    new = {name: sorted(clauses) for name, clauses in known.items()}
    found: Digests = defaultdict(dict)
    for twins, clauses in pairs:
        found[twins][clauses] = sources.digest(twins, clauses, new)
    return new, dict(found)
