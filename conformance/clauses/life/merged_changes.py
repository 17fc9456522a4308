"""A merged layer whose adapter changes before it is unmerged."""

from __future__ import annotations

from conformance.clauses.life.layer import OPERATIONS, SIZES, lacking
from conformance.clauses.life.layer_judgement import judge_output
from conformance.clauses.life.layer_life import Life
from conformance.clauses.life.layer_states import Unmerge
from conformance.clauses.life.life_case import LifeCase, LifeSpace
from conformance.clauses.life.situation import Situation
from conformance.specification.clause import clause
from conformance.target.subject import Subject


class UnmergeAgain(Unmerge):
    """Unmerging a merged layer."""

    def fits(self, now: Situation) -> bool:
        return now.merged


CHANGING = ("merge", "fill-A", "fill-B", "scale", "eval", "train", "to-float32", "to-bfloat16", "deepcopy")
ANEW = ("init", "exchange")  # another adapter in place of the one that is merged
UNGUARDED = Situation(unguarded=True)
MERGED = LifeSpace(
    {"unmerge": UnmergeAgain(), **{name: OPERATIONS[name] for name in (*CHANGING, *ANEW, "reload", "load")}},
    UNGUARDED,
    lacking,
    ("merge",),
    **SIZES,
)


@clause(
    "LIFE-LAYER-MERGED",
    sentence="""If the adapter or its scale changes while it is merged, y is that of the merged adapter or of the
    present one, and unmerging restores W all the same.""",
    why="A layer that subtracts the present update from the weight leaves the difference of the two in it.",
    cases=MERGED,
    needs=("LinearLoRA.merge", "LinearLoRA.unmerge"),
    level="SHOULD",  # libraries ask that a merged adapter be left alone
    weight=0.5,
)
def test_changes_while_merged(subject: Subject, case: LifeCase) -> float | None:
    return Life(subject, case, UNGUARDED).live(OPERATIONS, judge_output)
