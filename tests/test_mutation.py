"""The mutator makes the edits it names and leaves text alone, and the suite kills its mutants."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.errors import UsageError
from conformance.run.profiles import Profile
from conformance.specification.clause import Clause, load_all
from conformance.specification.groups import groups
from tests.campaigns.mutation import judging_groups, mutants, own_tests, summary, verdict
from tests.campaigns.mutation.operators import OPERATORS
from tests.campaigns.mutation.reach import Reach, clauses_of
from tests.campaigns.variants.catalogue import NOT_DONE
from tests.support import marked_lines, preloaded_process

EDITS = {
    "arithmetic": ("a + b", ["a - b"]),
    "dropped-term": ("a * b", ["a", "b"]),
    "swapped-operands": ("f(a, b, c)", ["f(b, a, c)"]),
    "comparison": ("a < b", ["a <= b", "a >= b"]),
    "boolean": ("a and b", ["a or b", "b", "a"]),
    "condition": ("a if c else b", ["a", "b"]),
    "constant": ("16", ["17", "15"]),
    "unwrapped-call": ("x.detach()", ["x"]),
    "detached": ("F.linear(x, 1)", ["F.linear(x.detach(), 1)"]),
    "dropped-keyword": ("f(a, dim=1)", ["f(a)"]),
    "dtype": ("torch.float32", ["torch.float16"]),
    "name": ("self.lora_A", ["self.lora_B"]),
    "statement": ("del_(a)", ["pass"]),
}
SOURCE = '''
"""Words about 1 + 1."""
import math
__all__ = ["one"]

def outer(a: int = 1) -> float:
    """More words, 2 * 2."""
    if a < 0:
        raise ValueError(f"a is {a + 1}")
    print(f"about {a + 2}")
    return math.sqrt(a)
'''


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_makes_the_edits_it_names(operator: str) -> None:
    source, edited = EDITS[operator]
    statement = ast.parse(source).body[0]
    node = statement if operator == "statement" else statement.value  # type: ignore[attr-defined]
    found = [ast.unparse(ast.fix_missing_locations(other)) for other in OPERATORS[operator](node)]
    assert found == edited


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder with one package of one module; return the module's path."""
    (tmp_path / "reference").mkdir()
    path = tmp_path / "reference" / "one.py"
    path.write_text(SOURCE)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "PACKAGES", ("reference",))
    return path


def test_text_annotations_and_exports_are_not_mutated(small: Path) -> None:
    found = [(m.operator, m.before, m.after) for m in mutants.mutants_of(small)]
    assert ("constant", "1", "2") in found  # the default value of `a`
    assert ("comparison", "a < 0", "a <= 0") in found
    assert ("statement", "raise ValueError(f'a is {a + 1}')", "pass") in found
    said = ("one", "a + 1", "a + 2", "int", "float", "Words about 1 + 1.")
    assert not [edit for edit in found if edit[1].strip("'") in said]


def test_a_mutant_has_one_edit_and_keeps_its_id_when_lines_move(small: Path, tmp_path: Path) -> None:
    before = mutants.mutants_of(small)
    assert len({m.id for m in before}) == len(before)
    chosen = next(m for m in before if m.after == "a <= 0")
    assert chosen.source == SOURCE.replace("a < 0", "(a <= 0)")
    mutants.write_copy(tmp_path / "copy", chosen)
    assert (tmp_path / "copy" / "reference" / "one.py").read_text() == chosen.source
    small.write_text("# a line more\n" + SOURCE)
    assert {m.id for m in mutants.mutants_of(small)} == {m.id for m in before}


@pytest.mark.parametrize(
    ("name", "times"),  # of two runs, the second finds nothing left to judge
    [
        ("reference/linear.py low_rank_update arithmetic", 2),
        ("optimized/kernels/lora_expand.py lora_expand_kernel dropped-term: acc * ", 1),
    ],
)
def test_the_suite_kills_mutants_of_the_formula(name: str, times: int, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    asked = ("-m", "tests.campaigns.mutation", "run", "--again", "all", "--only", name, "--journal", str(journal))
    for _ in range(times):
        ended = preloaded_process.command("python", asked, mutants.ROOT, 600)
        assert ended.returncode == 0, ended.stderr
        entries = [json.loads(line) for line in journal.read_text().splitlines()]
        assert len(entries) == len({e["mutant"] for e in entries}) > 0
    gaps = [e["mutant"] for e in entries if e["status"] == "survived" and not summary.reason(e["mutant"])]
    assert not gaps


@pytest.fixture(scope="module")
def every() -> list[mutants.Mutant]:
    """All mutants, which take seconds to make."""
    return mutants.all_mutants()


def test_a_name_that_begins_with_a_file_needs_the_mutants_of_that_file_alone(every: list[mutants.Mutant]) -> None:
    name = "reference/linear.py low_rank_update arithmetic"
    found = mutants.all_mutants(named=name)
    assert {mutant.file for mutant in found} == {"reference/linear.py"}
    assert [m.id for m in found if name in m.id] == [m.id for m in every if name in m.id]
    assert mutants.all_mutants(named="low_rank_update arithmetic") == every


def test_every_recorded_reason_matches_an_existing_mutant(every: list[mutants.Mutant]) -> None:
    names = [mutant.id for mutant in every]
    patterns = {pattern: summary.matching(pattern, names) for pattern in summary.reasons()}
    assert not [pattern for pattern, matched in patterns.items() if not matched]


def test_the_table_counts_killed_equivalent_and_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "reasons", lambda: {"reference/x.py f constant: 1 *": "a size of no effect"})
    base = {"file": "reference/x.py", "operator": "constant", "message": "", "seconds": 1.0}
    entries = [
        {**base, "mutant": "reference/x.py f a", "status": "killed", "clause": "LIN-FWD"},
        {**base, "mutant": "reference/x.py f b", "status": "hung", "clause": ""},
        {**base, "mutant": "reference/x.py f constant: 1 → 2", "status": "survived", "clause": ""},
        {**base, "mutant": "reference/x.py f c", "status": "survived", "clause": ""},
    ]
    found = summary.scores(entries)
    assert found["files"]["reference/x.py"] == {"killed": 2, "equivalent": 1, "gap": 1, "score": 0.6667}
    assert found["groups"] == {"LIN": 1}
    assert found["gaps"] == ["reference/x.py f c"]
    assert found["equivalent"] == {"a size of no effect": 1}
    assert summary.of_today(entries, {"reference/x.py f b"}) == entries[1:2]


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("while True: pass", "timeout"),
        ("import time; time.sleep(600)", "timeout"),
        ("raise SystemExit(3)", "exit status 3"),
    ],
    ids=["busy", "waiting", "gone"],
)
def test_a_mutant_that_loops_or_waits_for_ever_is_stopped(
    script: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "IDLE_LIMIT", 5)
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 9))\n{script}"
    child = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", limited], os.environ)
    assert verdict._waited(child)[0] == found


def test_a_rule_says_which_groups_judge_each_file() -> None:
    listed = subprocess.run(["git", "ls-files", "reference", "optimized"], capture_output=True, text=True, check=True)
    files = [name for name in listed.stdout.split() if name.endswith(".py") and not name.endswith("__init__.py")]
    named = {name: judging_groups.groups_of(name) for name in files}
    assert set().union(*named.values()) <= set(groups())
    assert not [name for name, found in named.items() if not found]
    with pytest.raises(LookupError, match=r"reference/new\.py: no rule in judging_groups\.RULES"):
        judging_groups.groups_of("reference/new.py")


NESTED = """
SIZE = 4

def outer(a, b=5):
    if a > (
        6
    ):
        return a * 7
    return [
        8,
    ]
"""


def test_a_mutant_knows_the_lines_of_its_statement_and_whether_they_run_at_import(small: Path) -> None:
    small.write_text(NESTED)
    found = {m.before: (m.lines, m.imported) for m in mutants.mutants_of(small) if m.operator == "constant"}
    assert found == {
        "4": ((2, 3), True),
        "5": ((4, 5), True),
        "6": ((5, 8), False),
        "7": ((8, 9), False),
        "8": ((9, 12), False),
    }


def _of_file(name: str, text: str) -> mutants.Mutant:
    return next(m for m in mutants.mutants_of(mutants.ROOT / name) if text in m.id)


def test_only_clauses_that_run_a_line_judge_it(tmp_path: Path) -> None:
    load_all()
    reach = Reach(tmp_path, (), Profile("one", volume=1, interpreted=1))

    def ids(mutant: mutants.Mutant, groups: tuple[str, ...]) -> set[str]:
        return {clause.id for clause in reach.clauses(mutant, "reference", groups, "1")}

    checked = _of_file("reference/config.py", "check_alpha_named constant: 0 → 1")
    unknown = _of_file("reference/config.py", "PeftConfig.from_dict constant: 1 → 2")
    assert "CFG-UNKNOWN" in ids(unknown, ("config",)) < ids(checked, ("config",)) | {"CFG-UNKNOWN"}
    elsewhere = _of_file("reference/gradnorm.py", "wide_norm constant: 2 → 3")
    assert ids(elsewhere, ("config",)) == set()
    assert ids(elsewhere, ("distributed",)) == {c.id for c in clauses_of(("distributed",), ())}
    constants = _of_file("reference/packed/four_bit_tables.py", "<module> constant")
    assert constants.imported
    assert ids(constants, ("config",)) == {c.id for c in clauses_of(("config",), ())}
    assert len(list(tmp_path.iterdir())) == 1  # measured once, though asked often


def test_clauses_that_the_unedited_reference_does_not_pass_judge_no_mutant() -> None:
    load_all()
    edits = [_of_file(f"reference/{name}.py", "") for name in ("packed_weight", "batched")]
    parts = [part for edit in edits for part in verdict._plan(edit, None) if part.module == "reference"]
    asked = {clause.id for part in parts for clause in part.clauses}
    assert {"QNT-FWD", "BAT-FWD"} <= asked
    assert not asked & set(NOT_DONE["reference"])


class Nowhere:
    """No clause runs any line."""

    def clauses(self, *_: object) -> list[Clause]:
        return []


def test_a_mutant_that_no_clause_runs_is_given_to_the_projects_own_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_tests, "TESTS", (("*", "answer_check"),))
    mutant = _of_file("reference/encrypted/answer_check.py", "products_modulo_prime arithmetic: values >> 24")
    found = verdict.verdict(mutant, Nowhere())  # type: ignore[arg-type]
    assert (found.status, found.clause.partition("::")[0]) == ("killed", "tests/test_answer_check.py")


def test_a_test_that_fails_on_unedited_packages_kills_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = _of_file("reference/config.py", "check_alpha_named constant: 0 → 1")
    always = {"status": "killed", "clause": "tests/test_x.py::test_y", "message": "no network"}
    monkeypatch.setattr(own_tests, "first_failure", lambda *_: always)
    said = r"tests/test_x\.py::test_y fails on a copy of the unedited packages: no network"
    with pytest.raises(RuntimeError, match=said):
        verdict.verdict(mutant, Nowhere())  # type: ignore[arg-type]


def test_the_readme_has_the_sentence_of_the_committed_table() -> None:
    found = json.loads(summary.REASONS.with_name("results.json").read_text(encoding="utf-8"))
    sentence = f"`{summary.COMMAND}` -->\n{summary.line(found)}\n<!-- end of mutation"
    assert sentence in (mutants.ROOT / "README.md").read_text(encoding="utf-8")


def test_verdicts_are_kept_by_the_digest_of_a_mutants_name(
    every: list[mutants.Mutant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "KEPT", tmp_path / "judged.csv")
    one, other, *_ = mutants.mutants_of(mutants.ROOT / "reference/linear.py")
    entries = [
        {"mutant": one.id, "file": one.file, "operator": one.operator, "status": "killed", "clause": "LIN-FWD"},
        {"mutant": "of a line that is gone", "file": "", "operator": "", "status": "survived", "clause": ""},
    ]
    summary.keep([{**entry, "seconds": 2.0} for entry in entries])
    [found] = summary.kept([one, other])
    assert {key: found[key] for key in (*entries[0], "seconds")} == {**entries[0], "seconds": 2.0}
    names = {mutant.id for mutant in every}
    assert len({summary.digest(name) for name in names}) == len(names)


def test_a_sentence_is_written_between_its_marks_alone(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- x: written by `y` -->\nold\n<!-- end of x -->\nb\n", encoding="utf-8")
    marked_lines.write(page, "x", "y", "new")
    assert page.read_text(encoding="utf-8") == "a\n<!-- x: written by `y` -->\nnew\n<!-- end of x -->\nb\n"
    with pytest.raises(UsageError, match="has no line '<!-- x: written by `z` -->' before a line '<!-- end of x -->'"):
        marked_lines.write(page, "x", "z", "new")


def test_each_file_has_tests_to_ask_about_what_no_clause_kills(every: list[mutants.Mutant]) -> None:
    asked = {path for mutant in every for path in own_tests.tests_of(mutant.file)}
    assert not [path for path in asked if not (mutants.ROOT / path).exists()]
