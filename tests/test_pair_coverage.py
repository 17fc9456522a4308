"""Covering arrays: every pair of values meets in the default profile; sizes have relations; draws are deterministic."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import pytest

from conformance.cases.case import Case, Space
from conformance.cases.covering_array import Coverage, completion
from conformance.cases.linear_case import LinearCase
from conformance.cases.size_relations import RELATIONS, offered, related
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


def test_every_clause_meets_all_pairs_in_the_default_profile() -> None:
    # clauses with dtypes, with a single dtype, and without; the other groups would take ten seconds
    found = coverage_by_group(load_all(["merge", "config", "remote"]).values(), PROFILES["default"])
    assert found["merge"].met == found["merge"].possible > 10_000
    for group in ("config", "remote"):
        assert found[group].met == found[group].possible > 0


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
