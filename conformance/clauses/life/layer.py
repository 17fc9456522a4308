"""The life of a layer: whatever happened to it, its output, gradients and state are those of the formula."""

from __future__ import annotations

from typing import Any

from conformance.clauses.life.layer_changes import CHANGES
from conformance.clauses.life.layer_judgement import judge_gradients, judge_output, judge_state
from conformance.clauses.life.layer_life import Life
from conformance.clauses.life.layer_states import STATES
from conformance.clauses.life.layer_uses import USES
from conformance.clauses.life.life_case import NAMES, LifeCase, LifeSpace
from conformance.clauses.life.situation import Situation
from conformance.specification.clause import clause
from conformance.target.subject import Subject

OPERATIONS = {operation.name: operation for operation in (*USES, *CHANGES, *STATES)}
NAMES += OPERATIONS
START = Situation()


def lacking(subject: Subject) -> set[str]:
    """The operations that a subject's layer does not have, such as merging."""
    life = Life(subject, LifeCase(k=5, n=4, r=2, bias=not subject.lacks("base_bias")), START)
    return {name for name, operation in OPERATIONS.items() if not operation.available(life)}


SIZES: dict[str, Any] = {
    "k": (5, 7, 4, 3, 8),
    "n": (4, 5, 3, 6),
    "r": (2, 3, 4),
    "scale": (2.0, 0.5, 1.0),
    "bias": (False, True),
    "adapter": ("same", "other"),
    "dropout": (0.0, 1.0),
}
LIVES = LifeSpace(OPERATIONS, START, lacking, **SIZES)


@clause(
    "LIFE-LAYER-FWD",
    sentence="""After any sequence of operations, y is that of the formula with the layer's present weight, bias,
    adapter, scale and mode.""",
    cases=LIVES,
    aliases=("LAY-USED-LOAD", "LAY-USED-TO", "MRG-COPY", "MRG-TRAIN"),
    weight=4.0,
)
def test_outputs_in_a_life(subject: Subject, case: LifeCase) -> float | None:
    return Life(subject, case, START).live(OPERATIONS, judge_output)


@clause(
    "LIFE-LAYER-BWD",
    sentence="""After any sequence of operations, exactly the tensors that require grad get a gradient, and it is that
    of the formula with the present values.""",
    cases=LIVES,
    weight=4.0,
)
def test_gradients_in_a_life(subject: Subject, case: LifeCase) -> float | None:
    return Life(subject, case, START).live(OPERATIONS, judge_gradients)


@clause(
    "LIFE-LAYER-STATE",
    sentence="""After any sequence of operations, the layer holds the expected values in the same Parameters, which
    require grad as before, and its state_dict is that of the unmerged layer, or where the target declares so has the
    merged weight.""",
    cases=LIVES,
    aliases=("LAY-USED-COPY", "MRG-FROZEN", "MRG-TO"),
    weight=4.0,
)
def test_state_in_a_life(subject: Subject, case: LifeCase) -> float | None:
    return Life(subject, case, START).live(OPERATIONS, judge_state)
