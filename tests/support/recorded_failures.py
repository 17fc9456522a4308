"""The recorded set of clauses that each known-bad twin fails, and the sets whose sources have changed since.

Each pair of a twin file and a clause file has a digest. It covers both files, the modules of `tests` or of groups that
they import, and the recorded failures. When a digest no longer matches, the clauses of that file judge the twins again.
Code that all groups share (the judge, the drawing of cases) is in no digest: after a change there, compare all sets.
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
GATHERING = ("tests.known_bad", "tests.support.twins")  # these modules load all twins, so digests ignore them

Sets = dict[str, list[str]]  # twin name -> clauses that it fails
Digests = dict[str, dict[str, str]]  # twin file -> clause file -> digest
Met = list[tuple[str, str]]  # pairs of a twin and a clause that judges it, besides its own clause
Judged = dict[tuple[str, str], Met]  # (twin file, clause file) -> pairs that fail


def sets_in(path: Path = SETS) -> Sets:
    """Read the recorded sets."""
    return dict(json.loads(path.read_text()))


def digests_in(path: Path = DIGESTS) -> Digests:
    """Read the digests that were recorded with the sets."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write(path: Path, held: Sets | Digests) -> None:
    """Write sorted JSON with one line per entry, so that diffs are readable."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(held[name], sort_keys=True)}" for name in sorted(held))
    path.write_text(f"{{\n{lines}\n}}\n")


@lru_cache(maxsize=1)
def meetings() -> dict[str, dict[str, Met]]:
    """Return, by twin file and clause file, the pairs of a twin and a clause that judges it."""
    found: dict[str, dict[str, Met]] = {bad.module: defaultdict(list) for bad in REGISTRY.values()}
    for bad in REGISTRY.values():
        for clause in others(bad):
            found[bad.module][clause.source].append((bad.name, clause.id))
    return found


def failing(met: Met) -> Met:
    """Judge these pairs and return those in which the twin does not pass."""
    by_twin: dict[str, list[Clause]] = defaultdict(list)
    for name, clause in met:
        by_twin[name].append(CLAUSES[clause])
    return [(name, clause.id) for name, clauses in by_twin.items() for clause in failed(REGISTRY[name], clauses)]


def said(met: Met, sets: Sets) -> Met:
    """Return the recorded failures of these twins in the clause files of these pairs, besides their own clauses."""
    names, sources = {name for name, _ in met}, {CLAUSES[clause].source for _, clause in met}
    found = [(name, clause) for name in names for clause in sets.get(name, ()) if clause != REGISTRY[name].clause]
    return sorted((name, clause) for name, clause in found if clause in CLAUSES and CLAUSES[clause].source in sources)


def judged(twins: str, files: Iterable[str]) -> Judged:
    """Judge the twins of a file by these clause files and return the failures."""
    return {(twins, clauses): failing(meetings()[twins][clauses]) for clauses in files}


def differences(found: Judged, sets: Sets) -> list[str]:
    """Return a line for each difference between the judged and the recorded failures."""
    lines = []
    for (twins, clauses), fails in found.items():
        known = said(meetings()[twins][clauses], sets)
        for name, clause in sorted({*fails} ^ {*known}):
            how = "fails, but the failure is not recorded" if (name, clause) in fails else "no longer fails"
            lines.append(f"{name} {how}: {clause}")
    return lines


class Sources:
    """The source texts of this project's modules.

    Args:
        instead: texts that replace those of some modules.
    """

    def __init__(self, instead: Mapping[str, bytes] | None = None) -> None:
        self._instead = instead or {}
        self._closures: dict[str, bytes] = {}

    def stale(self, twins: str, sets: Sets, digests: Digests) -> list[str]:
        """Return the clause files that must judge the twins of a file again."""
        kept = digests.get(twins, {})
        return [name for name in meetings()[twins] if kept.get(name) != self.digest(twins, name, sets)]

    def digest(self, twins: str, clauses: str, sets: Sets) -> str:
        """Return a digest of everything that decides which twins fail which clauses, and of the recorded failures."""
        met = meetings()[twins][clauses]
        about = sorted({(name, REGISTRY[name].groups, REGISTRY[name].dtypes) for name, _ in met})
        rest = repr((about, sorted(met), said(met, sets))).encode()
        return hashlib.sha256(self._texts(twins) + self._texts(clauses) + rest).hexdigest()[:16]

    def closure(self, module: str) -> list[str]:
        """Return a module and its imports of the same kind: modules of `tests` for twins, of groups for clauses."""
        found, waiting = {module: None}, [module]
        while waiting:
            for name in imported(self.text(waiting.pop())):
                if name not in found and is_followed(name, module):
                    found[name] = None
                    waiting.append(name)
        return sorted(found)

    def text(self, module: str) -> bytes:
        """Return the source text of a module of this project."""
        path = _path(module)
        assert path is not None
        return self._instead.get(module) or _content(path)

    def _texts(self, module: str) -> bytes:
        if module not in self._closures:
            together = b"".join(f"{name}\n".encode() + self.text(name) for name in self.closure(module))
            self._closures[module] = hashlib.sha256(together).digest()
        return self._closures[module]


def is_followed(module: str, origin: str) -> bool:
    """Whether an import belongs to the digest.

    It does within the same package, except for modules that only gather others and for code that all groups share.
    """
    path = _path(module)
    if path is None or path.name == "__init__.py" or module in GATHERING:
        return False
    first, _, rest = module.partition(".")
    if first != origin.partition(".")[0]:
        return False
    return first == "tests" or rest.startswith("clauses.")


@lru_cache(maxsize=1024)
def imported(text: bytes) -> tuple[str, ...]:
    """Return the modules that a text imports, and the imported names that could be modules."""
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
    """Return the sets and digests updated by newly judged pairs of files."""
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
