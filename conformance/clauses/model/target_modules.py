"""The layers that a config chooses: by targets, exclusions or match_all_linear; defaults, no match, contradictions."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.model.apply_to_model import MODELS, ModelCase
from conformance.clauses.model.matching_oracle import DEFAULT, chosen, drawn_key, near_keys, open_keys, pattern_in
from conformance.clauses.model.small_models import TOY_LINEARS, TaggedLinear, adapted, model_named
from conformance.clauses.model.target_calls import apply, apply_config, in_its_rule, make_config, refuses_all, warned
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.clause import clause
from conformance.specification.features import ABSENT
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

KINDS = ("run", "tail", "part", "exact", "last", "legacy")


@dataclass(frozen=True)
class NamesCase(Case):
    """A model with linear layers at drawn names, and patterns made from them.

    Fields:
        kind: the kind of the patterns, see `drawn_pattern`.   patterns: their number.
    """

    kind: str = "run"
    patterns: int = 1

    def drawn(self, rule: str, most: int = 99) -> tuple[list[str], list[str]]:
        """Layer names, at most `most`, no layer inside another, and patterns that match some but not all of them."""
        names, patterns = self._attempt(rule, self.seed, most)
        for attempt in range(1, 16):
            if 0 < len(chosen(patterns, names, rule)) < len(names):
                break
            names, patterns = self._attempt(rule, self.seed + 2**20 * attempt, most)
        return names, patterns

    def _attempt(self, rule: str, seed: int, most: int) -> tuple[list[str], list[str]]:
        key = drawn_key(seed)
        near = [*near_keys(key, seed), *(drawn_key(seed + 99 + i) for i in range(4))]
        near = random.Random(seed).sample(near, min(most, len(near)))
        if rule != DEFAULT:  # a name that differs from the key only by a longer last part, which another rule takes
            path, dot, last = key.rpartition(".")
            near = [key, f"{path}{dot}b{last}", *near]
        names: list[str] = []
        for name in near:
            inside = any(f"{a}.".startswith(f"{b}.") for n in names for a, b in ((n, name), (name, n)))
            if not inside:
                names.append(name)
        chance = random.Random(seed)
        sources = [chance.choice([*names, key]) for _ in range(self.patterns)]
        patterns = [pattern_in(rule, source, self.kind, seed + i) for i, source in enumerate(sources)]
        undecided = open_keys(patterns, names, rule)
        return [name for name in names if name not in undecided], patterns


NAMES = Space(NamesCase, kind=KINDS, patterns=(1, 2, 3))


@clause(
    "MOD-TARGETS",
    sentence="""target_modules chooses the linear layers whose name at least one pattern matches, by the rule of the
    target (`name_rule`), and no other module.""",
    cases=NAMES,
    dtypes=("float32",),
)
def test_targets(subject: Subject, case: NamesCase) -> None:
    rule = subject.convention("name_rule")
    names, patterns = case.drawn(rule)
    names = _offered(subject, names, patterns)
    _require_chosen(subject, names, chosen(patterns, names, rule), target_modules=patterns)


@clause(
    "MOD-EXCLUDES",
    sentence="""exclude_modules without other options chooses all linear layers except those whose name a pattern
    matches.""",
    cases=NAMES,
    dtypes=("float32",),
    feature="exclusions",
)
def test_excludes(subject: Subject, case: NamesCase) -> None:
    rule = subject.convention("name_rule")
    names, patterns = case.drawn(rule, most=9)  # most layers are patched, which takes time
    names = _offered(subject, names, patterns)
    left = sorted(set(names) - set(chosen(patterns, names, rule)))
    _require_chosen(subject, names, left, **_all_of(subject, names), exclude_modules=patterns)


def _all_of(subject: Subject, names: list[str]) -> dict[str, Any]:
    """Every layer as a target, for a target whose exclusions only reduce other choices."""
    if not subject.follows("exclusions", "combined"):
        return {}
    return {"target_modules": in_its_rule(subject, model_named(names), {"target_modules": names})["target_modules"]}


@clause(
    "MOD-STRING",
    sentence="""A plain string in place of a list is a single pattern, for target_modules and for exclude_modules. By
    the convention `string_pattern: regex` it is a regular expression, whatever the rule of a list.""",
    why="Iterating over a string makes each character a pattern.",
    cases=NAMES.narrowed(patterns=(1,)),
    dtypes=("float32",),
    feature="string_pattern",
)
def test_string(subject: Subject, case: NamesCase) -> None:
    rule = subject.convention("name_rule")
    if subject.follows("string_pattern", "regex"):
        rule = "regex"
    names, (pattern,) = case.drawn(rule, most=9)
    names = _offered(subject, names, [pattern])
    matched = chosen([pattern], names, rule)
    if case.seed % 2 or subject.follows("exclusions", ABSENT):
        _require_chosen(subject, names, matched, target_modules=pattern)
    else:
        left = sorted(set(names) - set(matched))
        _require_chosen(subject, names, left, **_all_of(subject, names), exclude_modules=pattern)


def _offered(subject: Subject, names: list[str], patterns: list[str]) -> list[str]:
    """The names; without those inside a module that matches, for a target that chooses not only linear modules."""
    if not subject.follows("linear_only", ABSENT):
        return names
    rule = subject.convention("name_rule")
    if subject.follows("exclusions", "combined"):
        patterns = [*patterns, *names]  # every layer is a target beside exclusions
    around = {name: [name[:i] for i, letter in enumerate(name) if letter == "."] for name in names}
    return [name for name in names if not chosen(patterns, around[name], rule)]


def _require_chosen(subject: Subject, names: list[str], expected: list[str], **options: Any) -> None:
    if expected in ([], sorted(names)):
        raise Inconclusive("the patterns match all names or none")
    linears = dict(model_named(names).named_children())
    model = nn.Sequential(OrderedDict(embedded=nn.Embedding(2, 2), **linears)).to(subject.device)
    what = ", ".join(f"{key}={value!r}" for key, value in options.items())
    count = apply_config(subject, model, make_config(subject, **options), what)  # the patterns are in its rule
    got = adapted(model)
    extra, lost = sorted(set(got) - set(expected)), sorted(set(expected) - set(got))
    require(not extra, f"{what} also chose {_few(extra)}")
    require(not lost, f"{what} did not choose {_few(lost)}")
    require(count == len(expected), f"{what} returned {count!r}: expected {len(expected)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@clause(
    "MOD-ALL",
    sentence="""match_all_linear chooses every nn.Linear, subclasses included, and no other module. None in place of a
    list counts as an empty list.""",
    cases=MODELS.narrowed(targets=("",)),
    dtypes=("float32",),
    feature="match_all",
    weight=0.5,
)
def test_all(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    model.blocks[0].fc1 = TaggedLinear(6, 12).to(subject.device)
    model.blocks[0].pointwise = nn.Conv1d(2, 2, 1).to(subject.device)
    lists: Any = (
        {},
        {"target_modules": None},
        {"exclude_modules": None},
        {"target_modules": None, "exclude_modules": []},
    )[: 2 if subject.follows("exclusions", ABSENT) else 4]
    for given in lists:
        adapting = copy.deepcopy(model)
        count = apply(subject, adapting, match_all_linear=True, dim=case.dim, **given)
        what, expected = f"match_all_linear=True with {given}", sorted(TOY_LINEARS)
        require(adapted(adapting) == expected, f"{what} chose {adapted(adapting)}: expected {expected}")
        require(count == len(TOY_LINEARS), f"{what} returned {count!r}: expected {len(TOY_LINEARS)}")


@clause(
    "MOD-LINEAR-ONLY",
    sentence="""Patterns choose linear layers only: embeddings, norms, convolutions and containers stay unchanged even
    if a pattern matches their name.""",
    cases=MODELS.narrowed(targets=("*", "embed,head", "*norm,*fc1", "conv,head", "blocks.0,head")),
    feature="linear_only",
    dtypes=("float32",),
    weight=0.5,
)
def test_linear_only(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    model.conv = nn.Conv1d(2, 2, 1).to(subject.device)
    kinds = {name: type(m) for name, m in model.named_modules() if not isinstance(m, nn.Linear)}
    apply(subject, model, **case.options)
    for name, kind in kinds.items():
        module = model.get_submodule(name)
        require(
            type(module) is kind and not hasattr(module, "lora_A"),
            f"{name}, a {kind.__name__}, was changed: not linear",
        )


@clause(
    "MOD-NOTHING-GIVEN",
    sentence="""A config without target_modules, exclude_modules and match_all_linear chooses the layers that `*_proj`
    matches, and warns with that pattern.""",
    cases=MODELS.narrowed(targets=("",)),
    dtypes=("float32",),
    feature="default_targets",
    weight=0.25,
)
def test_nothing_given(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    given: Any = ({}, {"target_modules": []}, {"target_modules": None, "exclude_modules": None})
    for options in given:
        if subject.follows("exclusions", ABSENT):
            options.pop("exclude_modules", None)
        adapting, what = copy.deepcopy(model), f"a config of {options or 'nothing'}"
        count, warnings = warned(subject, adapting, dim=case.dim, **options)
        expected = sorted(name for name in TOY_LINEARS if name.endswith("_proj"))
        require(adapted(adapting) == expected, f"{what} chose {adapted(adapting)}: expected {expected}")
        require(count == len(expected), f"{what} returned {count!r}: expected {len(expected)}")
        require("_proj" in warnings, f"{what} warned {warnings or 'nothing'!r}: expected it to name *_proj")


@clause(
    "MOD-NO-MATCH",
    sentence="""If no linear layer is chosen, the returned count is 0 and a warning lists the names of the linear
    layers that were tried. By the convention `no_match: error` a ValueError names the pattern; by `count alone` the
    count says it.""",
    why="A misspelt pattern otherwise trains nothing, silently.",
    cases=MODELS.narrowed(targets=("nothing_like_it", "embed", "q_proj.inner")),
    dtypes=("float32",),
    weight=0.25,
)
def test_no_match(subject: Subject, case: ModelCase) -> None:
    model, convention = case.toy(subject), subject.convention("no_match")
    if case.targets == "embed" and subject.follows("linear_only", ABSENT):
        case = dataclasses.replace(case, targets="embedding")  # by this convention `embed` is a target
    what = f"target_modules=[{case.targets!r}], which matches no layer,"
    if convention == "error":
        refuses_all(subject, model, what, **case.options)
        return
    count, warnings = warned(subject, model, **case.options)
    require(adapted(model) == [], f"{what} patched {adapted(model)}")
    require(count == 0, f"{what} returned {count!r}: expected 0")
    if convention == "count alone":
        return
    require(bool(warnings), f"{what} did not warn")
    unnamed = [name for name in TOY_LINEARS if name not in warnings]
    require(not unnamed, f"{what} warned without naming {', '.join(unnamed)}, which it tried")


@clause(
    "MOD-LISTS-UNTOUCHED",
    sentence="""ModuleMatcher does not modify the lists it is given, and later changes to these lists do not affect it
    (unless the target declares `pattern_lists: held`).""",
    cases=NAMES,
    level="SHOULD",
    dtypes=("float32",),
    needs=("ModuleMatcher", "ModuleMatcher.match"),
    weight=0.5,
)
def test_lists_untouched(subject: Subject, case: NamesCase) -> None:
    rule = subject.convention("name_rule")
    names, patterns = case.drawn(rule)
    given = list(patterns)
    with calling_quietly(f"ModuleMatcher({given}, [], False, False)"):
        matcher = subject.target.ModuleMatcher(given, [], False, False)
    expected = chosen(patterns, names, rule)
    for round_ in ("first", "second")[: 1 if subject.follows("pattern_lists", "held") else 2]:
        with calling(f"ModuleMatcher({given}, [], False, False).match"):
            got = sorted(name for name in names if matcher.match(nn.Linear(1, 1), name))
        require(got == expected, f"ModuleMatcher({patterns}) matched {got} the {round_} time: expected {expected}")
        require(given == patterns, f"ModuleMatcher modified its caller's list: {patterns} became {given}")
        given.append("*") if round_ == "first" else None
        patterns = list(given)
