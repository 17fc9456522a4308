"""The layout: where files stand, what may import what, and what must stand in one place only."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from conformance.specification.clause import load_all
from conformance.specification.groups import FOLDER, folders, groups

ROOT = Path(__file__).parent.parent
TOP = {"LICENSE", "README.md", "pyproject.toml", "ci", "conformance", "optimized", "reference", "tests"}
MODULES = {"__init__", "__main__", "cli", "errors", "plugin"}  # directly in conformance/
# A folder imports from those before it and from its own rank.
ORDER = (
    ("errors", "numerics"),
    ("cases",),
    ("judgement", "specification"),
    ("isolation",),
    ("target",),
    ("report",),
    ("reproducer",),
    ("clauses",),
    ("run",),
    ("adapters", "bench", "demo"),
    ("commands", "plugin", "cli", "__main__", "__init__"),
)
FRONT = "conformance.front."  # its package is imported as `loraspec`, and no other module imports that
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
PACKAGES = ("conformance", "reference", "optimized", "loraspec", "tests")
# Nouns of the field that end like a gerund; other modules are named by what they hold, not by what they do.
NOUNS = (
    "aliasing",
    "clipping",
    "fine_tuning",
    "matching",
    "package_shadowing",
    "recording",
    "rounding",
    "seeding",
    "switching",
    "training",
)
LINES, FUNCTION = 310, 62  # at most, in a file and in a function
TWINS = ROOT / "tests" / "known_bad"


@cache
def tracked() -> tuple[Path, ...]:
    """The files of the repository, as paths from its root."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return tuple(Path(name) for name in listed if (ROOT / name).exists())


@cache
def tree(path: Path) -> ast.Module:
    """A file of the repository, parsed."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    files = [path for path in tracked() if path.suffix == ".py" and path.parts[0] in PACKAGES]
    names = {".".join(path.with_suffix("").parts): path for path in files}
    return {name.removeprefix(FRONT).removesuffix(".__init__"): path for name, path in names.items()}


def imported(module: str) -> Iterator[str]:
    """The modules of the project that a module imports, inside functions too."""
    for node in ast.walk(tree(modules()[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from (found for found in [name if name in modules() else node.module] if found in modules())


def test_the_top_level_holds_five_folders_and_three_files() -> None:
    assert {path.parts[0] for path in tracked() if not path.parts[0].startswith(".")} == TOP


def test_five_modules_stand_directly_in_conformance() -> None:
    found = {path.stem for path in tracked() if path.parent == Path("conformance") and path.suffix == ".py"}
    assert found == MODULES


def test_a_folder_imports_only_from_those_before_it() -> None:
    wrong = []
    for module in (name for name in modules() if name.partition(".")[0] == "conformance"):
        here = [*module.split("."), "__init__"][1]
        if here in RANK:
            for name in imported(module):
                there = [*name.split("."), "__init__"][1]
                if name.partition(".")[0] == "tests" or (
                    name.partition(".")[0] == "conformance" and RANK.get(there, RANK["cli"]) > RANK[here]
                ):
                    wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_suite_does_not_import_its_front() -> None:
    wrong = [name for name in modules() if name.partition(".")[0] in ("conformance", "reference", "optimized")]
    wrong = [name for name in wrong if any(found.partition(".")[0] == "loraspec" for found in imported(name))]
    assert not wrong, f"these import loraspec: {', '.join(wrong)}"


def test_no_files_import_each_other_in_a_circle() -> None:
    waiting = {name: set(imported(name)) - {name} for name in modules()}
    while free := {name for name, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    while ends := set(waiting) - {name for needs in waiting.values() for name in needs}:
        waiting = {name: needs for name, needs in waiting.items() if name not in ends}
    assert not waiting, f"these import each other: {', '.join(sorted(waiting))}"


def test_no_text_names_a_module_of_the_project() -> None:
    wrong = []
    for path in modules().values():
        if path.parts[0] == "tests":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
                name = node.value.rpartition(":")[0] or node.value
                if name in modules() or name.rpartition(".")[0] in set(modules()) - set(PACKAGES):
                    wrong.append(f"{path}:{node.lineno} {node.value!r}")
    assert not wrong, "marks on functions say it instead:\n" + "\n".join(wrong)


def test_every_file_of_clauses_has_its_file_of_twins() -> None:
    topics = {clause.source.partition(f"{FOLDER.name}.")[2].replace(".", "/") for clause in load_all().values()}
    twins = {
        str(path.relative_to(TWINS.relative_to(ROOT)).with_suffix(""))
        for path in tracked()
        if path.is_relative_to(TWINS.relative_to(ROOT)) and path.suffix == ".py"
    }
    assert topics <= twins, f"no twins for {', '.join(sorted(topics - twins))}"
    assert {name.partition("/")[0] for name in twins - {"__init__"}} == set(folders())


def test_a_group_is_one_record() -> None:
    prefixes = [group.prefix for group in groups().values()]
    assert len(set(prefixes)) == len(prefixes)
    assert sorted(folders()) == sorted(path.name for path in FOLDER.iterdir() if (path / "__init__.py").exists())
    assert {clause.group for clause in load_all().values()} == set(groups())


def test_modules_are_named_by_nouns() -> None:
    stems = {path: path.stem for path in modules().values() if not path.is_relative_to("tests/targets")}
    stems = {path: stem for path, stem in stems.items() if not stem.startswith("test_")}
    wrong = [str(path) for path, stem in stems.items() if stem.endswith("ing") and not stem.endswith(NOUNS)]
    assert not wrong, f"named by what they do: {', '.join(wrong)}"


def _first_name(decorator: ast.expr) -> str:
    return ast.unparse(decorator).partition(".")[0]


def test_files_and_functions_are_short() -> None:
    long = [f"{p}: {n} lines" for p in modules().values() if (n := len((ROOT / p).read_text().splitlines())) > LINES]
    for path in modules().values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and "triton" in map(_first_name, node.decorator_list):
                continue  # a kernel is one function
            if isinstance(node, ast.FunctionDef) and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION:
                long.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    assert not long, "\n".join(long)


@pytest.mark.parametrize(
    "path",
    [
        "tests/known_bad/recorded.json",
        "tests/known_bad/first_failures.json",
        "tests/campaigns/alarms/results.json",
        "conformance/run/deaths.json",
        "conformance/run/shared_rows.json",
        "conformance/report/diagnoses.json",
    ],
)
def test_generated_data_has_one_line_an_entry(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    held = json.loads(text)
    entries = max(len(held), *(len(value) for value in held.values() if isinstance(value, dict)), 0)
    assert len(text.splitlines()) <= 2 * entries + 20, f"{path} has {len(text.splitlines())} lines of {entries} entries"


def test_python_files_say_what_they_hold() -> None:
    without = [str(path) for path in modules().values() if not re.match(r"\S.*", ast.get_docstring(tree(path)) or "")]
    assert not without, f"no docstring in {', '.join(without)}"


def test_the_index_of_budgets_names_every_file_that_derives_one() -> None:
    page = ROOT / "conformance" / "numerics" / "README.md"
    linked = {(page.parent / name).resolve() for name in re.findall(r"\]\(([^)]+\.py)\)", page.read_text())}
    assert all(path.exists() for path in linked), "the index names a file that is not there"
    deriving = {
        path for path in FOLDER.rglob("*.py") if re.search(r"\ballowed =|def allowed\b", path.read_text("utf-8"))
    }
    assert deriving <= linked, f"not in the index: {', '.join(sorted(map(str, deriving - linked)))}"
