"""Covering arrays: every pair of values meets in the default profile; sizes have relations; draws are deterministic."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from conformance.cases.case import FIRST_SEED, Case, Space
from conformance.cases.covering_array import Coverage, completion
from conformance.cases.linear_case import LinearCase
from conformance.cases.size_relations import RELATIONS, offered, related
from conformance.judgement.outcomes import Inconclusive
from conformance.run import case_search, row_choice, shared_rows
from conformance.run.case_search import Examination
from conformance.run.pair_coverage import coverage_by_group
from conformance.run.profiles import PROFILES
from conformance.specification.clause import Clause, load_all
from tests.support.commands import loraspec


@dataclass(frozen=True)
class Toy(Case):
    """A case with four fields; `wide` is out of bounds beside `c=2`."""

    a: int = 0
    b: int = 0
    c: int = 0
    d: str = "x"


def narrowed(case: Toy) -> Toy:
    return dataclasses.replace(case, d="x") if case.c == 2 and case.d == "wide" else case


TOY = Space(Toy, tame=narrowed, a=(0, 1, 2, 3), b=(0, 1, 2), c=(0, 1, 2), d=("x", "y", "wide"))
DTYPES = ("float32", "bfloat16")
QUICK = PROFILES["quick"]


def pairs(cases: list[Toy]) -> set[tuple[tuple[str, object], ...]]:
    """The pairs of values that cases meet."""
    names = ("dtype", "a", "b", "c", "d")
    return {c for case in cases for c in itertools.combinations([(n, getattr(case, n)) for n in names], 2)}


def drawn(count: int, dtypes: tuple[str, ...] = DTYPES) -> list[Toy]:
    return [TOY.draw(0, "LIN-X", index, dtype, DTYPES) for dtype in dtypes for index in range(count)]


def test_the_rows_of_all_dtypes_meet_every_possible_pair() -> None:
    rows = TOY.rows(0, "LIN-X", DTYPES)
    cases = [TOY.draw(0, "LIN-X", i, dtype, DTYPES) for dtype in DTYPES for i in range(rows.count(dtype))]
    axes = TOY.axes(DTYPES)
    everything = {
        tuple(zip(names, values, strict=True))
        for names in itertools.combinations(axes, 2)
        for values in itertools.product(*(axes[name] for name in names))
    }
    impossible = (("c", 2), ("d", "wide"))
    assert {frozenset(p) for p in everything} - {frozenset(p) for p in pairs(cases)} == {frozenset(impossible)}
    assert len(cases) <= 22  # 4·3 pairs of the two longest fields, in two dtypes, need 12 at the least


def test_a_run_of_one_dtype_takes_over_the_rows_of_the_other() -> None:
    rows = TOY.rows(0, "LIN-X", DTYPES)
    own, whole = rows.count("float32"), rows.count("float32", whole=True)
    assert own < whole == rows.count("float32") + rows.count("bfloat16")
    alone = drawn(whole, ("float32",))
    assert alone[:own] == drawn(own, ("float32",))
    both = pairs([*drawn(own, ("float32",)), *drawn(whole - own, ("bfloat16",))])
    kept = {p for p in both if "dtype" not in dict(p)}
    assert kept <= pairs(alone)


def test_draws_depend_on_their_arguments_only() -> None:
    again = Space(Toy, tame=narrowed, **TOY.values)
    backwards = [again.draw(0, "LIN-X", index, "float32", DTYPES) for index in reversed(range(30))]
    assert backwards[::-1] == drawn(30, ("float32",))
    assert drawn(9) != [TOY.draw(0, "LIN-Y", index, dtype, DTYPES) for dtype in DTYPES for index in range(9)]


def test_triples_follow_the_pairs() -> None:
    rows = TOY.rows(0, "LIN-X", DTYPES, 3)
    count = rows.count("", whole=True)
    assert count > TOY.rows(0, "LIN-X", DTYPES).count("", whole=True)
    cases = [TOY.draw(0, "LIN-X", i, d, DTYPES, 3) for d in DTYPES for i in range(rows.count(d))]
    coverage = Coverage(TOY.axes(DTYPES), 3)
    coverage.add(cases)
    assert set(coverage.open) == rows.coverages[-1].excluded


def test_a_space_without_choices_has_one_row() -> None:
    coverage = Coverage({"a": (1,), "b": (2, 2)})
    assert list(completion(Toy, [coverage], "key")) == [Toy()]


@pytest.mark.parametrize(
    ("relation", "holds"),
    [
        ("k=n", lambda c: c.k == c.n),
        ("r=k", lambda c: c.r == c.k),
        ("r=n", lambda c: c.r == c.n),
        ("m=k", lambda c: c.m == c.k),
        ("k=2n", lambda c: c.k == 2 * c.n),
        ("one", lambda c: c.m == c.k == c.n == c.r == 1),
        ("prime", lambda c: all(all(size % d for d in range(2, size)) and size > 1 for size in (c.m, c.k, c.n, c.r))),
    ],
)
def test_a_relation_holds_between_the_sizes(relation: str, holds: object) -> None:
    assert set(RELATIONS) >= {relation}
    values = {"m": (1, 9, 40), "k": (1, 8, 40), "n": (1, 6, 40), "r": (1, 4, 40)}
    assert relation in offered(values)
    case = related(LinearCase(m=9, k=8, n=6, r=4, sizes=relation), values)
    assert callable(holds)
    assert holds(case)
    assert case.sizes == relation


def test_a_relation_out_of_bounds_leaves_the_sizes_free() -> None:
    case = LinearCase(m=3, k=50, n=5, r=2, sizes="k=n")
    assert related(case, {"k": (50,), "n": (5, 6)}) == dataclasses.replace(case, sizes="free")
    assert offered({"m": (1,), "k": (1,), "n": (1,), "r": (1,)}) == ("free",)


def of(*groups: str) -> list[Clause]:
    """The clauses of these groups, whatever other tests have loaded."""
    return [clause for clause in load_all(groups).values() if clause.group in groups]


def test_every_clause_meets_all_pairs_in_the_default_profile() -> None:
    # clauses with dtypes, with a single dtype, and without; the other groups would take ten seconds
    found = coverage_by_group(of("merge", "config", "remote"), PROFILES["default"])
    assert found["merge"].met == found["merge"].possible > 8_000
    for group in ("config", "remote"):
        assert found[group].met == found[group].possible > 0


def test_every_group_meets_all_pairs_across_its_clauses_in_the_quick_profile() -> None:
    found = coverage_by_group(of("merge", "config"), PROFILES["quick"])
    for group in ("merge", "config"):
        assert found[group].across_met == found[group].across
        assert found[group].met < found[group].possible  # the default profile meets these


def test_the_shared_rows_are_up_to_date() -> None:
    # only digests are compared, since choosing the rows takes a minute
    by_group: dict[str, list[Clause]] = {}
    for clause in load_all().values():
        if not clause.cases.covers:
            by_group.setdefault(clause.group, []).append(clause)
    digests = {group: row_choice.digest(members) for group, members in by_group.items()}
    assert digests == shared_rows.read()[0], "run `loraspec spec`"


def test_shared_rows_are_chosen_anew_where_a_space_or_a_number_of_cases_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merging = of("merge")
    current = row_choice.text(merging)
    changed = [dataclasses.replace(one, cases=one.cases.narrowed(k=(1, 2))) for one in merging]
    assert row_choice.digest(changed) != row_choice.digest(merging)
    monkeypatch.setattr(shared_rows, "read", lambda: ({}, {}))
    monkeypatch.setattr(row_choice, "read", lambda: ({}, {}))
    assert row_choice.text(merging) == current, "the choice is the same each time"


def test_a_cheap_clause_takes_the_rows_and_the_cases_drawn_anyway_come_first() -> None:
    cheap, dear = (Clause(f"LIN-{name}", "It is.", max, TOY, dtypes=DTYPES) for name in ("CHEAP", "DEAR"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_choice, "seconds_of_case", lambda name, *_: 0.001 if name == "LIN-CHEAP" else 0.5)
        patch.setattr("conformance.run.profiles.deaths", lambda: {"LIN-CHEAP": 1, "LIN-DEAR": 1})
        choice = row_choice.Choice([cheap, dear])
        assert not choice.open
        rows = {name: sum(map(len, numbers.values())) for name, numbers in choice.rows.items()}
        free = QUICK.margin * len(DTYPES)
        assert rows["LIN-DEAR"] <= free < rows["LIN-CHEAP"]
        patch.setattr(row_choice, "seconds_of_case", lambda *_: 60.0)
        left = row_choice.Choice([cheap, dear])
        assert left.open, "pairs that only cost too much are left to the default profile"
        assert sum(map(len, left.rows["LIN-CHEAP"].values())) <= free


def test_shared_rows_come_after_the_cases_that_twins_need(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"float32": [9, 17], "bfloat16": [11]}
    monkeypatch.setattr("conformance.run.shared_rows.read", lambda: ({}, {"LIN-X": chosen}))
    monkeypatch.setattr("conformance.run.profiles.deaths", lambda: {"LIN-X": 2})
    seen: list[Toy] = []

    def check(subject: object, case: Toy) -> None:  # noqa: ARG001
        seen.append(case)
        if len(seen) == 1:
            raise Inconclusive("not decided")

    clause = Clause("LIN-X", "It is.", check, TOY, dtypes=DTYPES)
    subject = SimpleNamespace(name="toy", device="cpu", lane="cpu")
    monkeypatch.setattr(case_search, "check_case", lambda clause, subject, case: clause.check(subject, case))
    for whole in (False, True):
        seen.clear()
        result = Examination(clause, subject, "float32", QUICK, whole=whole).run()
        numbers = [case.seed for case in seen]
        # the first decides nothing; a run without bfloat16 takes over its row
        taken_over = 11 + FIRST_SEED["bfloat16"]
        assert numbers == ([0, 1, 2, 9, 17, taken_over] if whole else [0, 1, 2, 9, 17])
        assert {case.dtype for case in seen} == {"float32"}
        assert result.examples == len(seen) - 1 == QUICK.cases(clause, "cpu", "float32", whole=whole)
    assert QUICK.shared(clause, "interpreter", "float32") == ()


def test_the_command_prints_a_line_for_each_group_and_refuses_an_unknown_profile() -> None:
    lines = loraspec("spec", "--coverage", "--profile", "quick", "--group", "config").stdout.splitlines()
    assert lines[0].startswith("pairs of values")
    assert [line.split()[0] for line in lines[1:]] == ["group", "config"]
    refused = loraspec("spec", "--coverage", "--profile", "quik")
    assert refused.returncode == 2
    assert "unknown profile 'quik'" in refused.stderr


def test_a_clause_of_one_dtype_counts_all_its_rows() -> None:
    clause = Clause("LIN-X", "It is.", max, TOY, dtypes=("float16",))
    count = PROFILES["default"].cases(clause, "cpu", "float16")
    assert count >= 12
    assert TOY.draw(0, "LIN-X", 0, "float16", ("float16",)).dtype == "float16"
