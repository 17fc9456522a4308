"""A layer whose tensors change in place inside an autocast region."""

from __future__ import annotations

from conformance.clauses.life.layer import OPERATIONS, SIZES, lacking
from conformance.clauses.life.layer_judgement import judge_both
from conformance.clauses.life.layer_life import Life
from conformance.clauses.life.life_case import LifeCase, LifeSpace
from conformance.clauses.life.situation import Situation
from conformance.specification.clause import clause
from conformance.target.subject import Subject

CHANGES = ("fill-A", "fill-B", "fill-bias", "fill-weight", "init", "scale", "load")
USES = ("forward", "backward", "no-grad", "checkpoint", "eval", "train", "autocast", "leave")
CHANGING = Situation(changing=True)
REGIONS = LifeSpace({name: OPERATIONS[name] for name in (*CHANGES, *USES)}, CHANGING, lacking, ("autocast",), **SIZES)


@clause(
    "LIFE-LAYER-REGION",
    sentence="""If tensors of a layer change in place inside an autocast region, the next call in it uses their new
    values, and its gradients are right.""",
    why="""Autocast casts a trainable Parameter once for a region. With the optimiser's step inside it, every later call
    would use the adapter from before.""",
    cases=REGIONS,
    dtypes=("float32",),
    feature="autocast",
    convention="autocast_updates=new values",
    level="SHOULD",  # F.linear itself goes on using what autocast has cast
    weight=0.5,
)
def test_changes_inside_a_region(subject: Subject, case: LifeCase) -> float | None:
    return Life(subject, case, CHANGING).live(OPERATIONS, judge_both)
