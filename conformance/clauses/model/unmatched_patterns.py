"""Patterns that match no layer of the model, among others that match some."""

from __future__ import annotations

import itertools

from conformance.clauses.model.apply_to_model import MODELS, ModelCase
from conformance.clauses.model.target_calls import warned
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.subject import Subject

# Pairs of patterns: the first matches layers of the toy, the second does not, though it resembles a name.
PAIRS = ("q_proj,k_proj", "fc1,fc", "head,heads", "blocks.0.*,blocks.2.*", "*_proj,blocks.0.norm")


@clause(
    "MOD-UNMATCHED",
    sentence="""A pattern that matches no linear layer is named in a warning, for target_modules also if other patterns
    match some, and for exclude_modules; a pattern that matches one is not.""",
    why="""With q_proj, k_proj and v_proj on a model that has kv_proj, one layer in two is trained, silently; a
    misspelt exclusion trains what was to stay.""",
    cases=MODELS.narrowed(targets=PAIRS),
    level="SHOULD",
    dtypes=("float32",),
    weight=0.5,
)
def test_unmatched_pattern(subject: Subject, case: ModelCase) -> None:
    some, none = case.targets.split(",")
    for key, patterns in itertools.product(("target_modules", "exclude_modules"), ([some, none], [some])):
        _, said = warned(subject, case.toy(subject), dim=case.dim, use_triton=case.triton, **{key: patterns})
        what = f"{key}={patterns}"
        if patterns == [some]:
            require(some not in said, f"{what}: {some!r} matches layers, and a warning names it: {said!r}")
        else:
            named = f"{none!r}" in said or f" {none} " in f" {said} "
            require(named, f"{what}: {none!r} matches no layer, and no warning names it: {said or 'none'!r}")
