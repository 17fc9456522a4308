"""Options that choose layers in two ways: targets with exclusions, and match_all_linear with either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.model.matching_oracle import chosen
from conformance.clauses.model.small_models import TOY_LINEARS, Toy, adapted
from conformance.clauses.model.target_calls import apply_config, in_its_rule, make_config, shown
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly, refuses
from conformance.target.subject import Subject

EXCLUSIVE: tuple[dict[str, Any], ...] = (
    {"target_modules": ["fc1"], "exclude_modules": ["fc2"]},
    {"target_modules": ["fc1"], "match_all_linear": True},
    {"exclude_modules": ["fc1"], "match_all_linear": True},
    {"target_modules": "fc1", "exclude_modules": "fc2"},
    {"target_modules": ["fc1"], "exclude_modules": ["fc2"], "match_all_linear": True},
)
# what a target that combines targets and exclusions is asked; it may still refuse match_all_linear with targets
COMBINED: tuple[dict[str, Any], ...] = (
    {"target_modules": ["fc1", "fc2"], "exclude_modules": ["fc2"]},
    {"target_modules": ["*_proj", "head"], "exclude_modules": ["blocks.0.*"]},
    {"target_modules": ["fc1"], "exclude_modules": ["head"]},
    {"target_modules": ["blocks.*"], "exclude_modules": ["blocks.1.fc1", "blocks.0.q_proj"]},
    {"target_modules": ["*"], "exclude_modules": ["fc1", "head"]},
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
    and no layer has been patched. By the convention `exclusions: combined`, targets with exclusions choose the targets
    that no exclusion matches.""",
    cases=EXCLUSIONS,
    dtypes=("float32",),
    feature="exclusions",
    weight=0.5,
)
def test_exclusive(subject: Subject, case: ExclusiveCase) -> None:
    if subject.follows("exclusions", "combined"):
        _require_the_rest(subject, COMBINED[case.given])
        return
    options, model = EXCLUSIVE[case.given], Toy().to(subject.device)
    said = refuses(
        f"apply_lora_to_linear_modules(model, PeftConfig({shown((), options)[2:]}))",
        lambda: subject.thing(model, make_config(subject, **options)),
    )
    _require_reason(said, options)
    what = shown((), options)[2:]
    require(adapted(model) == [], f"PeftConfig({what}) was refused after {adapted(model)} had been patched")


def _require_the_rest(subject: Subject, given: dict[str, Any]) -> None:
    """Require that targets with exclusions choose the targets without what the exclusions match."""
    model = Toy().to(subject.device)
    left = set(chosen(given["exclude_modules"], TOY_LINEARS))
    expected = sorted(set(chosen(given["target_modules"], TOY_LINEARS)) - left)
    options = in_its_rule(subject, model, given)
    what = shown((), options)[2:]
    count = apply_config(subject, model, make_config(subject, **options), what)
    require(adapted(model) == expected, f"{what} chose {adapted(model)}: expected {expected}")
    require(count == len(expected), f"{what} returned {count!r}: expected {len(expected)}")


@clause(
    "MOD-MATCHER-EXCLUSIVE",
    sentence="""A ModuleMatcher made from mutually exclusive options raises a ValueError, at the latest in match. The
    message says "mutually exclusive" or names two of the options. By the convention `exclusions: combined` a matcher
    with targets and exclusions matches a target that no exclusion matches.""",
    cases=EXCLUSIONS,
    dtypes=("float32",),
    needs=("ModuleMatcher", "ModuleMatcher.match"),
    feature="exclusions",
    weight=0.5,
)
def test_matcher_exclusive(subject: Subject, case: ExclusiveCase) -> None:
    if subject.follows("exclusions", "combined"):
        _require_matches(subject, COMBINED[case.given])
        return
    options = {
        "target_modules": [],
        "exclude_modules": [],
        "match_all_linear": False,
        **EXCLUSIVE[case.given],
    }
    what = ", ".join(repr(value) for value in options.values())
    said = refuses(
        f"ModuleMatcher({what}, False).match(Linear, 'mlp.fc1')",
        lambda: subject.target.ModuleMatcher(*options.values(), False).match(nn.Linear(1, 1), "mlp.fc1"),
    )
    _require_reason(said, EXCLUSIVE[case.given])


def _require_matches(subject: Subject, given: dict[str, Any]) -> None:
    options = in_its_rule(subject, Toy(), given)
    lists = options["target_modules"], options["exclude_modules"]
    call = f"ModuleMatcher({lists[0]}, {lists[1]}, False, False)"
    with calling_quietly(call):
        matcher = subject.target.ModuleMatcher(*lists, False, False)
    for name in TOY_LINEARS:
        wanted = bool(chosen(given["target_modules"], [name])) and not chosen(given["exclude_modules"], [name])
        with calling(f"{call}.match"):
            got = matcher.match(nn.Linear(1, 1), name)
        require(bool(got) is wanted, f"{call}.match(Linear, {name!r}) returned {got!r}: expected {wanted}")
