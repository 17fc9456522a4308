"""The life of a model: whatever happened to it, its outputs, gradients and state are those of its layers' formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from conformance.clauses.life.life_case import NAMES, LifeCase, LifeSpace
from conformance.clauses.life.model_changes import CHANGES
from conformance.clauses.life.model_files import FILE_OPERATIONS
from conformance.clauses.life.model_judgement import judge_gradients, judge_outputs, judge_state
from conformance.clauses.life.model_life import ModelLife
from conformance.clauses.life.model_situation import ModelSituation
from conformance.clauses.life.model_states import STATES
from conformance.clauses.life.model_uses import USES
from conformance.clauses.life.situation import Operation
from conformance.specification.clause import clause
from conformance.target.subject import Subject

MODEL_OPERATIONS: dict[str, Operation] = {
    operation.name: operation for operation in (*USES, *CHANGES, *STATES, *FILE_OPERATIONS)
}
NAMES += [name for name in MODEL_OPERATIONS if name not in NAMES]
MODEL_START = ModelSituation()
SUBJECT = ("apply_lora_to_linear_modules",)


def lacking_in(
    operations: Mapping[str, Operation], life_type: type[ModelLife] = ModelLife
) -> Callable[[Subject], set[str]]:
    """A function of a subject that returns those of some operations that the target does not have."""

    def lacking(subject: Subject) -> set[str]:
        life = life_type(subject, LifeCase(k=4, n=5, r=2, bias=True), MODEL_START)
        return {name for name, operation in operations.items() if not operation.available(life)}

    return lacking


MODEL_SIZES: dict[str, Any] = {
    "k": (4, 5, 3, 6),
    "n": (5, 4, 3, 6),
    "r": (2, 3, 4),
    "scale": (2.0, 0.5, 1.0),
    "bias": (False, True),
    "adapter": ("same", "other"),
    "dropout": (0.0, 1.0),
}
MODEL_LIVES = LifeSpace(MODEL_OPERATIONS, MODEL_START, lacking_in(MODEL_OPERATIONS), **MODEL_SIZES)


@clause(
    "LIFE-MODEL-FWD",
    sentence="""After any sequence of operations on a model, the output of each of its layers is that of the formula
    with the layer's input and its present weight, bias, adapter and mode.""",
    cases=MODEL_LIVES,
    subjects=SUBJECT,
    weight=2.2,  # in quick, four dtypes together meet every pair
)
def test_outputs_of_a_model(subject: Subject, case: LifeCase) -> float | None:
    return ModelLife(subject, case, MODEL_START).live(MODEL_OPERATIONS, judge_outputs)


@clause(
    "LIFE-MODEL-BWD",
    sentence="""After any sequence of operations on a model, each adapter that requires grad, each trainable bias and
    each layer's input get the gradient of the formula, and no frozen parameter gets one.""",
    cases=MODEL_LIVES,
    subjects=SUBJECT,
    weight=2.2,  # in quick, four dtypes together meet every pair
)
def test_gradients_of_a_model(subject: Subject, case: LifeCase) -> float | None:
    return ModelLife(subject, case, MODEL_START).live(MODEL_OPERATIONS, judge_gradients)


@clause(
    "LIFE-MODEL-STATE",
    sentence="""After any sequence of operations, a model holds the expected values in the same Parameters, a tied head
    is tied, exactly the expected parameters require grad (after adapting and loading, the adapters), and its
    state_dict is that of the unmerged model, or where the target declares so has the merged weights.""",
    cases=MODEL_LIVES,
    subjects=SUBJECT,
    weight=2.2,  # in quick, four dtypes together meet every pair
)
def test_state_of_a_model(subject: Subject, case: LifeCase) -> float | None:
    return ModelLife(subject, case, MODEL_START).live(MODEL_OPERATIONS, judge_state)
