"""The layers that a config chooses: by targets, exclusions or match_all_linear; defaults, no match, contradictions."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.model.apply_to_model import MODELS, ModelCase
from conformance.clauses.model.matching_oracle import chosen, drawn_key, drawn_pattern, near_keys
from conformance.clauses.model.small_models import TOY_LINEARS, TaggedLinear, Toy, adapted, model_named
from conformance.clauses.model.target_calls import apply, config_class, warned
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly, refuses
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

    def drawn(self, most: int = 99) -> tuple[list[str], list[str]]:
        """Layer names, at most `most`, no layer inside another, and patterns that match some but not all of them."""
        names, patterns = self._attempt(self.seed, most)
        for attempt in range(1, 16):
            if 0 < len(chosen(patterns, names)) < len(names):
                break
            names, patterns = self._attempt(self.seed + 2**20 * attempt, most)
        return names, patterns

    def _attempt(self, seed: int, most: int) -> tuple[list[str], list[str]]:
        key = drawn_key(seed)
        near = [*near_keys(key, seed), *(drawn_key(seed + 99 + i) for i in range(4))]
        near = random.Random(seed).sample(near, min(most, len(near)))
        names: list[str] = []
        for name in near:
            inside = any(f"{a}.".startswith(f"{b}.") for n in names for a, b in ((n, name), (name, n)))
            if not inside:
                names.append(name)
        chance = random.Random(seed)
        sources = [chance.choice([*names, key]) for _ in range(self.patterns)]
        return names, [drawn_pattern(source, self.kind, seed + i) for i, source in enumerate(sources)]


NAMES = Space(NamesCase, kind=KINDS, patterns=(1, 2, 3))


@clause(
    "MOD-TARGETS",
    sentence="target_modules chooses the linear layers whose name at least one pattern matches, and no other module.",
    cases=NAMES,
    dtypes=("float32",),
)
def test_targets(subject: Subject, case: NamesCase) -> None:
    names, patterns = case.drawn()
    _require_chosen(subject, names, chosen(patterns, names), target_modules=patterns)


@clause(
    "MOD-EXCLUDES",
    sentence="""exclude_modules without other options chooses all linear layers except those whose name a pattern
    matches.""",
    cases=NAMES,
    dtypes=("float32",),
)
def test_excludes(subject: Subject, case: NamesCase) -> None:
    names, patterns = case.drawn(most=9)  # most layers are patched, which takes time
    left = sorted(set(names) - set(chosen(patterns, names)))
    _require_chosen(subject, names, left, exclude_modules=patterns)


@clause(
    "MOD-STRING",
    sentence="A plain string in place of a list is a single pattern, for target_modules and for exclude_modules.",
    why="Iterating over a string makes each character a pattern.",
    cases=NAMES.narrowed(patterns=(1,)),
    dtypes=("float32",),
)
def test_string(subject: Subject, case: NamesCase) -> None:
    names, (pattern,) = case.drawn(most=9)
    matched = chosen([pattern], names)
    if case.seed % 2:
        _require_chosen(subject, names, matched, target_modules=pattern)
    else:
        _require_chosen(subject, names, sorted(set(names) - set(matched)), exclude_modules=pattern)


def _require_chosen(subject: Subject, names: list[str], expected: list[str], **options: Any) -> None:
    if expected in ([], sorted(names)):
        raise Inconclusive("the patterns match all names or none")
    linears = dict(model_named(names).named_children())
    model = nn.Sequential(OrderedDict(embedded=nn.Embedding(2, 2), **linears)).to(subject.device)
    what = ", ".join(f"{key}={value!r}" for key, value in options.items())
    count = apply(subject, model, **options)
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
    )
    given = lists[case.seed % len(lists)]
    count = apply(subject, model, match_all_linear=True, dim=case.dim, **given)
    what, expected = f"match_all_linear=True with {given}", sorted(TOY_LINEARS)
    require(adapted(model) == expected, f"{what} chose {adapted(model)}: expected {expected}")
    require(count == len(TOY_LINEARS), f"{what} returned {count!r}: expected {len(TOY_LINEARS)}")


@clause(
    "MOD-LINEAR-ONLY",
    sentence="""Patterns choose linear layers only: embeddings, norms, convolutions and containers stay unchanged even
    if a pattern matches their name.""",
    cases=MODELS.narrowed(targets=("*", "embed,head", "*norm,*fc1", "conv,head", "blocks.0,head")),
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
    weight=0.25,
)
def test_nothing_given(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    options: Any = ({}, {"target_modules": []}, {"target_modules": None, "exclude_modules": None})[case.seed % 3]
    count, warnings = warned(subject, model, dim=case.dim, **options)
    expected = sorted(name for name in TOY_LINEARS if name.endswith("_proj"))
    require(adapted(model) == expected, f"a config without targets chose {adapted(model)}: expected {expected}")
    require(count == len(expected), f"a config without targets returned {count!r}: expected {len(expected)}")
    require(
        "_proj" in warnings,
        f"a config without targets warned {warnings or 'nothing'!r}: expected it to name *_proj",
    )


@clause(
    "MOD-NO-MATCH",
    sentence="""If no linear layer is chosen, the returned count is 0 and a warning lists the names of the linear
    layers that were tried.""",
    why="A misspelt pattern otherwise trains nothing, silently.",
    cases=MODELS.narrowed(targets=("nothing_like_it", "embed", "q_proj.inner")),
    dtypes=("float32",),
    weight=0.25,
)
def test_no_match(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    count, warnings = warned(subject, model, **case.options)
    what = f"target_modules=[{case.targets!r}], which matches no layer,"
    require(adapted(model) == [], f"{what} patched {adapted(model)}")
    require(count == 0, f"{what} returned {count!r}: expected 0")
    require(bool(warnings), f"{what} did not warn")
    unnamed = [name for name in TOY_LINEARS if name not in warnings]
    require(not unnamed, f"{what} warned without naming {', '.join(unnamed)}, which it tried")


EXCLUSIVE: tuple[dict[str, Any], ...] = (
    {"target_modules": ["fc1"], "exclude_modules": ["fc2"]},
    {"target_modules": ["fc1"], "match_all_linear": True},
    {"exclude_modules": ["fc1"], "match_all_linear": True},
    {"target_modules": "fc1", "exclude_modules": "fc2"},
    {"target_modules": ["fc1"], "exclude_modules": ["fc2"], "match_all_linear": True},
)


@dataclass(frozen=True)
class ExclusiveCase(Case):
    """Contradictory options, as an index into the table."""

    given: int = 0


def _require_reason(said: str, options: dict[str, Any]) -> None:
    named = [key for key in options if key in said]
    reason = len(named) > 1 or "mutually exclusive" in said.lower()
    require(reason, f"the error {said!r} neither says 'mutually exclusive' nor names two of {', '.join(options)}")


EXCLUSIONS = Space(ExclusiveCase, given=tuple(range(len(EXCLUSIVE))))


@clause(
    "MOD-EXCLUSIVE",
    sentence="""target_modules together with exclude_modules, or match_all_linear with either, raises a ValueError,
    when the config is made or when it is applied. The message says "mutually exclusive" or names two of the options,
    and no layer has been patched.""",
    cases=EXCLUSIONS,
    dtypes=("float32",),
    weight=0.5,
)
def test_exclusive(subject: Subject, case: ExclusiveCase) -> None:
    options, model = EXCLUSIVE[case.given], Toy().to(subject.device)
    kind = config_class(subject)
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items())
    said = refuses(
        f"apply_lora_to_linear_modules(model, PeftConfig({shown}))",
        lambda: subject.thing(model, kind(**options)),
    )
    _require_reason(said, options)
    require(adapted(model) == [], f"PeftConfig({shown}) was refused after {adapted(model)} had been patched")


@clause(
    "MOD-MATCHER-EXCLUSIVE",
    sentence="""A ModuleMatcher made from mutually exclusive options raises a ValueError, at the latest in match. The
    message says "mutually exclusive" or names two of the options.""",
    cases=EXCLUSIONS,
    dtypes=("float32",),
    needs=("ModuleMatcher", "ModuleMatcher.match"),
    weight=0.5,
)
def test_matcher_exclusive(subject: Subject, case: ExclusiveCase) -> None:
    options = {
        "target_modules": [],
        "exclude_modules": [],
        "match_all_linear": False,
        **EXCLUSIVE[case.given],
    }
    shown = ", ".join(repr(value) for value in options.values())
    said = refuses(
        f"ModuleMatcher({shown}, False).match(Linear, 'mlp.fc1')",
        lambda: subject.target.ModuleMatcher(*options.values(), False).match(nn.Linear(1, 1), "mlp.fc1"),
    )
    _require_reason(said, EXCLUSIVE[case.given])


@clause(
    "MOD-LISTS-UNTOUCHED",
    sentence="ModuleMatcher does not modify the lists it is given, and later changes to these lists do not affect it.",
    cases=NAMES,
    level="SHOULD",
    dtypes=("float32",),
    needs=("ModuleMatcher", "ModuleMatcher.match"),
    weight=0.5,
)
def test_lists_untouched(subject: Subject, case: NamesCase) -> None:
    names, patterns = case.drawn()
    given = list(patterns)
    with calling_quietly(f"ModuleMatcher({given}, [], False, False)"):
        matcher = subject.target.ModuleMatcher(given, [], False, False)
    expected = chosen(patterns, names)
    for round_ in ("first", "second"):
        with calling(f"ModuleMatcher({given}, [], False, False).match"):
            got = sorted(name for name in names if matcher.match(nn.Linear(1, 1), name))
        require(got == expected, f"ModuleMatcher({patterns}) matched {got} the {round_} time: expected {expected}")
        require(given == patterns, f"ModuleMatcher modified its caller's list: {patterns} became {given}")
        given.append("*") if round_ == "first" else None
        patterns = list(given)
