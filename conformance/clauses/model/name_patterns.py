"""`wildcard_match` and `ModuleMatcher`: one clause for each sentence of the rule, judged by an independent oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.model.matching_oracle import (
    DEFAULT,
    drawn_key,
    drawn_pattern,
    literal_patterns,
    matches,
    near_keys,
    pattern_in,
)
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject


@dataclass(frozen=True)
class PatternCase(Case):
    """A pattern made from a dotted name, both drawn by the seed; for its kind see `drawn_pattern`."""

    kind: str = "exact"

    @property
    def key(self) -> str:
        """The dotted name."""
        return drawn_key(self.seed)

    @property
    def pattern(self) -> str:
        """The pattern."""
        return drawn_pattern(self.key, self.kind, self.seed)

    def in_the_rule(self, subject: Subject) -> str:
        """The pattern as the target's rule writes it."""
        return pattern_in(subject.convention("name_rule"), self.key, self.kind, self.seed)


def require_match(subject: Subject, pattern: str, key: str | None, wanted: bool | None) -> None:
    """Require the result of wildcard_match for one pattern and key, where the target's rule decides it."""
    if wanted is None:
        return
    call = f"wildcard_match({pattern!r}, {key!r})"
    with calling(call):
        got = subject.target.wildcard_match(pattern, key)
    require(bool(got) is wanted, f"{call} returned {got!r}: expected {wanted}")


def _clause_of(clause_id: str, sentence: str, *kinds: str) -> Any:
    """A clause that judges patterns of these kinds on the key they were made from and on similar keys."""

    def judged(subject: Subject, case: PatternCase) -> None:
        odd, rule = case.pattern.replace("*", "-größe (v2)+[0]"), subject.convention("name_rule")
        for key in (*near_keys(case.key, case.seed), odd):  # a name may hold anything but newlines
            require_match(subject, case.pattern, key, matches(case.pattern, key, rule))

    judged.__name__ = f"test_{clause_id.lower().replace('-', '_')}"
    return clause(
        clause_id,
        sentence=sentence,
        cases=Space(PatternCase, kind=kinds),
        dtypes=(),
        needs=("wildcard_match",),
    )(judged)


test_full_name = _clause_of(
    "MOD-PATTERN-NAME",
    """A pattern without `*` matches a name if it equals the full dotted name or its last component, and no other name.
    By the rule `wildcards` it matches the full name only.""",
    "exact",
    "last",
)
test_run = _clause_of(
    "MOD-PATTERN-RUN",
    "`*` matches any run of characters, empty or with dots, and the pattern must span the whole name.",
    "run",
    "part",
)
test_tail = _clause_of(
    "MOD-PATTERN-TAIL", "A final `.*` may also match the empty string: `*.b.*` matches `a.b` and `a.b.c`.", "tail"
)
test_legacy = _clause_of(
    "MOD-PATTERN-LEGACY",
    "In a pattern that begins with `.*` (the legacy form) each `.*` matches any run: `.*fc.*` matches `mlp.fc1`.",
    "legacy",
)


@clause(
    "MOD-PATTERN-LITERAL",
    sentence="""Every character except `*` matches itself only: `.` matches a dot, and `+ ? [ ( ^ $ \\ |` have no
    special meaning.""",
    why="A pattern that is passed to `re` or `fnmatch` unescaped matches modules that the user did not name.",
    cases=Space(PatternCase, kind=("exact",)),
    dtypes=(),
    needs=("wildcard_match",),
)
def test_literal(subject: Subject, case: PatternCase) -> None:
    for pattern in (case.pattern, *literal_patterns(case.key, case.seed)):
        for key in (case.key, pattern, case.key.replace(".", "x", 1), case.key.replace(".", "")):
            require_match(subject, pattern, key, matches(pattern, key, subject.convention("name_rule")))


@clause(
    "MOD-PATTERN-NONE",
    sentence="wildcard_match(pattern, None) returns False for every pattern.",
    cases=Space(PatternCase, kind=("run", "legacy", "exact", "tail")),
    dtypes=(),
    needs=("wildcard_match",),
    weight=0.25,
)
def test_none(subject: Subject, case: PatternCase) -> None:
    for pattern in ("*", ".*", "None", case.pattern):
        require_match(subject, pattern, None, wanted=False)


TABLE: tuple[tuple[str, str, bool], ...] = (
    ("q_proj", "model.layers.0.self_attn.q_proj", True),
    ("q_proj", "model.q_proj.inner", False),
    ("*_proj", "model.layers.0.self_attn.q_proj", True),
    ("*.q_proj", "a.bq_proj", False),
    ("*.q_proj", "a.q_proj", True),
    ("*.q_proj", "q_proj", False),
    ("*.layers.1.*.q", "m.layers.1.attn.q", True),
    ("*.layers.1.*.q", "m.layers.11.attn.q", False),
    ("*.layers.1.*.q", "m.layers.1.q", False),
    ("*.b.*", "a.b", True),
    ("*.b.*", "a.b.c", True),
    ("*.b.*", "a.b.c.d", True),
    ("*.b.*", "a.bc", False),
    ("*.b.*", "b.c", False),
    ("a.*.c", "a.b.b.c", True),
    ("a.*.c", "a.c", False),
    (".*fc.*", "mlp.fc1", True),
    (".*fc.*", "fc", True),
    (".*fc", "mlp.fc1", False),
    (".*layers.*q_proj", "m.layers.0.q_proj", True),
    (".*layers.*q_proj", "m.layer.0.q_proj", False),
    ("*", "a.b.c", True),
    (".*", "a.b.c", True),
    ("a.b", "a.b", True),
    ("a.b", "axb", False),
    ("a.b", "x.a.b", False),
    ("b", "a.b", True),
    ("b", "a.b1", False),
    ("Fc1", "mlp.fc1", False),
    ("blocks.*.fc1", "blocks.10.fc1", True),
)


@dataclass(frozen=True)
class TableCase(Case):
    """The line of the table of patterns and names with which a case begins; every case judges all lines."""

    line: int = 0


@clause(
    "MOD-PATTERN-TABLE",
    sentence="The example patterns in the documentation match, or do not match, the names given with them.",
    cases=Space(TableCase, line=(0, 10, 20)),
    dtypes=(),
    needs=("wildcard_match",),
)
def test_table(subject: Subject, case: TableCase) -> None:
    rule = subject.convention("name_rule")
    for pattern, key, wanted in (*TABLE[case.line :], *TABLE[: case.line]):
        require_match(subject, pattern, key, wanted if rule == DEFAULT else matches(pattern, key, rule))


@clause(
    "MOD-MATCHER",
    sentence="""ModuleMatcher.match(m, name, prefix) matches the patterns against the full name `prefix.name`, and
    matches linear modules only.""",
    cases=Space(PatternCase, kind=("run", "last", "tail", "part", "legacy")),
    dtypes=(),
    needs=("ModuleMatcher", "ModuleMatcher.match"),
)
def test_matcher(subject: Subject, case: PatternCase) -> None:
    pattern, rule, layer = case.in_the_rule(subject), subject.convention("name_rule"), nn.Linear(1, 1)
    with calling_quietly(f"ModuleMatcher([{pattern!r}], [], False, False)"):
        matcher = subject.target.ModuleMatcher([pattern], [], False, False)
    for key in near_keys(case.key, case.seed):
        prefix, _, name = key.rpartition(".")
        wanted = matches(pattern, key, rule)
        for arguments in ((name, prefix or None), (key, None), (key, "")) if wanted is not None else ():
            call = f"ModuleMatcher([{pattern!r}]).match(Linear, {arguments[0]!r}, {arguments[1]!r})"
            with calling(call):
                got = matcher.match(layer, *arguments)
            require(bool(got) is wanted, f"{call} returned {got!r}: expected {wanted}")
        with calling("ModuleMatcher.match(LayerNorm)"):
            got = matcher.match(nn.LayerNorm(1), key)
        require(
            not got,
            f"ModuleMatcher([{pattern!r}]).match(LayerNorm, {key!r}) returned {got!r}: it is not linear",
        )


@clause(
    "MOD-MATCHER-EXCLUDE",
    sentence="""A ModuleMatcher with exclude_modules, given as a list or as a single string, matches exactly the
    linear modules that no pattern matches.""",
    cases=Space(PatternCase, kind=("run", "last", "tail", "part", "legacy")),
    dtypes=(),
    needs=("ModuleMatcher", "ModuleMatcher.match"),
)
def test_matcher_excluding(subject: Subject, case: PatternCase) -> None:
    pattern, rule = case.in_the_rule(subject), subject.convention("name_rule")
    for given in ([pattern], pattern)[: None if subject.convention("string_pattern") == "one pattern" else 1]:
        call = f"ModuleMatcher([], {given!r}, False, False)"
        with calling_quietly(call):
            matcher = subject.target.ModuleMatcher([], given, False, False)
        for key in near_keys(case.key, case.seed):
            if matches(pattern, key, rule) is None:
                continue
            wanted = not matches(pattern, key, rule)
            prefix, _, name = key.rpartition(".")
            for arguments in ((key,), (name, prefix or None)):
                said = f"{call}.match(Linear, {', '.join(map(repr, arguments))})"
                with calling(said):
                    got = matcher.match(nn.Linear(1, 1), *arguments)
                require(bool(got) is wanted, f"{said} returned {got!r}: expected {wanted}")


@clause(
    "MOD-MATCHER-HEAD",
    sentence="""With match_all_linear and is_causal_lm every linear module matches except those with `lm_head` as a
    component of their name; by the convention `output_head: chosen` these match too. Without is_causal_lm the lm_head
    matches. With is_causal_lm it also matches if a pattern of target_modules matches it, or if exclude_modules are
    given and none matches it.""",
    why="An adapter on the large output head is rarely wanted unless it is named.",
    cases=Space(PatternCase, kind=("exact",)),
    level="SHOULD",
    dtypes=(),
    needs=("ModuleMatcher", "ModuleMatcher.match"),
    weight=0.5,
)
def test_matcher_head(subject: Subject, case: PatternCase) -> None:
    kept = ["lm_head", f"{case.key}.lm_head", f"{case.key}.lm_head.dense"]
    names = [*kept, *(f"{case.key}.{name}" for name in ("film_head", "lm_head_norm", "head", "output")), case.key]
    left_out = subject.convention("output_head") == "left out"
    for causal in (True, False):
        with calling_quietly(f"ModuleMatcher([], [], True, {causal})"):
            matcher = subject.target.ModuleMatcher([], [], True, causal)
        for name in names:
            wanted = not (left_out and causal and "lm_head" in name.split("."))
            prefix, _, last = name.rpartition(".")
            for arguments in ((name,), (last, prefix or None)):
                shown = ", ".join(map(repr, arguments))
                said = f"ModuleMatcher(match_all_linear=True, is_causal_lm={causal}).match(Linear, {shown})"
                with calling(said):
                    got = matcher.match(nn.Linear(1, 1), *arguments)
                require(bool(got) is wanted, f"{said} returned {got!r}: expected {wanted}")
    given: tuple[Any, ...] = ((["lm_head"], []), ([], ["mlp"]))  # the head is named, or not excluded
    for patterns in given:
        said = f"ModuleMatcher({patterns[0]}, {patterns[1]}, is_causal_lm=True).match(Linear, 'lm_head')"
        with calling_quietly(said):
            got = subject.target.ModuleMatcher(*patterns, False, True).match(nn.Linear(1, 1), "lm_head")
        require(bool(got), f"{said} returned {got!r}: expected True")
