"""Conventions of adapted models: each is seen or declared, judged by its own oracle, and contradicted aloud."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.clauses.model.matching_oracle import matches
from conformance.errors import TargetError
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.baselines import fused_model, model_conventions
from tests.baselines.model import RightMatcher, RightModel

MATCHING = ("MOD-TARGETS", "MOD-EXCLUDES", "MOD-STRING", "MOD-MATCHER", "MOD-MATCHER-EXCLUDE", "MOD-LISTS-UNTOUCHED")
PATTERNS = ("MOD-PATTERN-NAME", "MOD-PATTERN-RUN", "MOD-PATTERN-TAIL", "MOD-PATTERN-LITERAL", "MOD-PATTERN-TABLE")
USING = ("MOD-COUNT", "MOD-LINEAR-ONLY", "MOD-LOOKALIKE", "MOD-SHARED", "MOD-CONFIG-UNTOUCHED", "MOD-STEP")
RULES = (*MATCHING, *PATTERNS, *USING)
FUSED = ("MOD-ARCH-FWD", "MOD-ARCH-BWD")


def judged(thing: Any, *names: str) -> dict[str, str]:
    """The outcomes other than a pass of clauses on a target, in float32."""
    target, found = Target.of(thing, type(thing).__name__), {}
    for name in names:
        clause = load_all()[name]
        subjects = target.subjects(clause)
        if not subjects:
            found[name] = f"not claimed: {', '.join(target.lacking(clause))}"
            continue
        result = Examination(clause, subjects[0], "float32", PROFILES["quick"]).run()
        if result.status != "pass":
            found[name] = f"{result.status}: {result.case} {result.message}"
    return found


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (RightModel, {"name_rule": "component or wildcards", "output_head": "left out", "in_place": "supported"}),
        (model_conventions.ByWildcards, {"name_rule": "wildcards"}),
        (model_conventions.ByLooseWildcards, {"name_rule": "wildcards"}),
        (model_conventions.BySuffix, {"name_rule": "suffix"}),
        (model_conventions.ByComponent, {"name_rule": "component"}),
        (model_conventions.ByRegex, {"name_rule": "regex"}),
        (
            model_conventions.LikePeft,
            {
                "name_rule": "suffix",
                "string_pattern": "regex",
                "exclusions": "combined",
                "default_targets": "absent",
                "no_match": "error",
            },
        ),
        (model_conventions.AdaptsEveryHead, {"output_head": "chosen"}),
        (model_conventions.HasNoExclusions, {"exclusions": "absent"}),
    ],
)
def test_a_convention_is_seen(kind: type[RightModel], shown: dict[str, str]) -> None:
    found = Target.of(kind(), "it").shown("model")
    assert {name: found.get(name) for name in shown} == shown


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (model_conventions.ByWildcards, RULES),
        (model_conventions.ByLooseWildcards, (*MATCHING, *PATTERNS)),
        (model_conventions.BySuffix, (*RULES, "MOD-AGAIN", "MOD-REFUSED-MODEL", "MOD-NO-MATCH")),
        (model_conventions.ByRegex, (*MATCHING, *USING)),
        (
            model_conventions.LikePeft,
            (*MATCHING, "MOD-EXCLUSIVE", "MOD-MATCHER-EXCLUSIVE", "MOD-NO-MATCH", "MOD-COUNT"),
        ),
        (model_conventions.AdaptsEveryHead, ("MOD-MATCHER-HEAD", "MOD-ARCH-COUNT", "MOD-ARCH-FREEZE")),
        (model_conventions.SaysNothing, ("MOD-NO-MATCH", "MOD-SHARED-ALIAS", "MOD-SHARED", "MOD-DROPOUT", "MOD-DIM")),
        (fused_model.FusedMlp, (*FUSED, "MOD-ARCH-CHECKPOINT")),
        (fused_model.FusedProjections, FUSED),
    ],
)
def test_a_right_model_of_another_convention_passes(kind: type[RightModel], names: tuple[str, ...]) -> None:
    assert judged(kind(), *names) == {}


def test_a_rule_that_cannot_say_a_choice_is_judged_by_the_others() -> None:
    assert judged(model_conventions.ByComponent(), "MOD-TARGETS", "MOD-MATCHER", "MOD-COUNT", "MOD-STEP") == {}


def test_what_is_absent_is_not_claimed() -> None:
    absent = "not claimed: feature exclusions"
    found = judged(model_conventions.HasNoExclusions(), "MOD-EXCLUDES", "MOD-EXCLUSIVE", "MOD-STRING", "MOD-ALL")
    assert found == {"MOD-EXCLUDES": absent, "MOD-EXCLUSIVE": absent}
    assert judged(model_conventions.TakesOneConfig(), "MOD-SECOND") == {
        "MOD-SECOND": "not claimed: feature a second config"
    }
    found = judged(model_conventions.LikePeft(), "MOD-NOTHING-GIVEN")
    assert found == {"MOD-NOTHING-GIVEN": "not claimed: feature default targets"}


class SometimesExcludes(RightModel):
    """Exclusions of one layer work half: they leave out the first layer alone."""

    class Matcher(RightMatcher):
        def chooses(self, name: str | None) -> bool:
            return name == "fc" if self.excludes else super().chooses(name)


def declaring(kind: type[RightModel], **features: str) -> Target:
    """A target of this class that declares features."""
    return Target.of(type(kind.__name__, (kind,), {"CONFORMANCE": {"features": features}})(), "it")


@pytest.mark.parametrize(
    ("kind", "features", "problem"),
    [
        (RightModel, {"name_rule": "suffix"}, "'name_rule' is 'suffix', but calls show 'component or wildcards'"),
        (model_conventions.AdaptsEveryHead, {"output_head": "left out"}, "'output_head' is 'left out', but calls show"),
        (model_conventions.LikePeft, {"exclusions": "absent"}, "'exclusions' is 'absent', but calls show 'combined'"),
        (RightModel, {"in_place": "absent"}, "'in_place' is 'absent', but calls show 'supported'"),
        (RightModel, {"exclusions": "absent"}, "'exclusions' is 'absent', but calls show 'alone'"),
        (RightModel, {"match_all": "absent"}, "'match_all' is 'absent', but calls show 'supported'"),
        (SometimesExcludes, {"exclusions": "absent"}, "'exclusions' is 'absent', but calls show 'an effect'"),
        (RightModel, {"default_targets": "absent"}, "'default_targets' is 'absent', but calls show 'supported'"),
    ],
)
def test_a_declaration_that_calls_contradict_is_named(
    kind: type[RightModel], features: dict[str, str], problem: str
) -> None:
    (found,) = declaring(kind, **features).binding_errors()
    assert found.startswith("apply_lora_to_linear_modules contradicts its declaration: feature ")
    assert problem in found


def test_an_unknown_convention_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(TargetError, match=r"\['name_rule'\] is 'wildcard': did you mean 'wildcards'\? expected"):
        declaring(RightModel, name_rule="wildcard")
    with pytest.raises(TargetError, match=r"unknown feature 'name_rules': did you mean 'name_rule'\?"):
        declaring(RightModel, name_rules="suffix")


class EndsAnywhere(model_conventions.BySuffix):
    """A suffix that need not begin at a dot."""

    CONFORMANCE = {"features": {"name_rule": "suffix"}}  # noqa: RUF012

    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        return key is not None and key.endswith(pattern)


class BeginsAnywhere(model_conventions.ByRegex):
    """A regular expression that is searched for, not matched in full."""

    CONFORMANCE = {"features": {"name_rule": "regex"}}  # noqa: RUF012

    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        return key is not None and any(super(BeginsAnywhere, self).wildcard_match(pattern, key[i:]) for i in range(9))


class ForgetsExclusions(model_conventions.LikePeft):
    """Exclusions beside targets have no effect."""

    CONFORMANCE = {"features": {"exclusions": "combined"}}  # noqa: RUF012

    class Matcher(model_conventions.LikePeft.Matcher):
        def chooses(self, name: str | None) -> bool:
            return RightMatcher.chooses(self, name) if not self.targets else any(
                self.matched(pattern, name) for pattern in self.targets
            )  # fmt: skip


class LeavesTheHeadHalf(model_conventions.AdaptsEveryHead):
    """The head of some causal models only."""

    CONFORMANCE = {"features": {"output_head": "chosen"}}  # noqa: RUF012

    class Matcher(RightMatcher):
        def is_head(self, name: str | None) -> bool:
            return name != "lm_head" and super().is_head(name)


class AcceptsAnyDropout(RightModel):
    """A rate of dropout beyond 1 is taken for 1."""

    CONFORMANCE = {"features": {"argument_checks": "when used"}}  # noqa: RUF012

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        options["dropout"] = min(max(options.get("dropout", 0.0), 0.0), 1.0)
        return super().patch_linear_module(orig_linear, *arguments, **options)


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        (EndsAnywhere, "MOD-TARGETS", "also chose"),
        (BeginsAnywhere, "MOD-TARGETS", "also chose"),
        (ForgetsExclusions, "MOD-EXCLUSIVE", "chose ["),
        (LeavesTheHeadHalf, "MOD-MATCHER-HEAD", "returned False: expected True"),
        (AcceptsAnyDropout, "MOD-DROPOUT", "gives a layer that trains: expected an error when it is used"),
    ],
)
def test_a_defect_under_a_convention_fails(kind: type[RightModel], name: str, says: str) -> None:
    assert says in judged(kind(), name).get(name, "it passes")


def test_a_layer_that_is_not_called_fails_where_fusing_is_declared_absent() -> None:
    target = declaring(fused_model.FusedMlp, fused_blocks="absent")
    found = judged(target.thing, "MOD-ARCH-FWD")
    assert "gate_proj has an adapter and the model did not call it" in found["MOD-ARCH-FWD"]


@pytest.mark.parametrize(
    ("pattern", "key", "wanted"),
    [
        ("q_proj", "a.q_proj", False),
        ("*q_proj", "a.q_proj", True),
        ("a.*.c", "a.c", None),
        ("a.*.c", "axc", False),
        ("a.*.c", "a.b.c", True),
        ("*.layers.1.*.q", "m.layers.11.q", False),
        ("*layers.1.*", "m.layers.11", False),
        ("*mlp.fc.*", "mlp.fc1", None),
    ],
)
def test_wildcards_are_open_only_where_libraries_differ(pattern: str, key: str, wanted: bool | None) -> None:
    assert matches(pattern, key, "wildcards") is wanted
