"""A model whose inner layers are Conv1D of transformers: it lives as any other, and their weights stay [in, out]."""

from __future__ import annotations

from typing import Any

import torch

from conformance.clauses.life.life_case import LifeCase, LifeSpace
from conformance.clauses.life.model import MODEL_OPERATIONS, MODEL_SIZES, MODEL_START, SUBJECT, lacking_in
from conformance.clauses.life.model_changes import Apply
from conformance.clauses.life.model_judgement import judge_whole
from conformance.clauses.life.model_life import ModelLife
from conformance.clauses.life.situation import Operation
from conformance.specification.clause import clause
from conformance.target.expected_errors import quiet
from conformance.target.subject import Subject

CONVERTED = """from transformers.pytorch_utils import Conv1D
model.up = Conv1D(model.up.out_features, model.up.in_features)
model.down = Conv1D(model.down.out_features, model.down.in_features)"""


class Conv1DLife(ModelLife):
    """A model whose layers `up` and `down` are Conv1D, and the truth about it."""

    turned = ("up", "down")
    built_so = CONVERTED


class ApplyToConv1D(Apply):
    """Adapters in the layers that are Conv1D, where the target adapts these."""

    def works(self, life: Any) -> bool:
        model = eval(life.built(torch.float32, {}), life.names)
        try:
            with quiet():
                life.subject.target.apply_lora_to_linear_modules(model, life.names["config"](life.turned, None))
        except Exception:  # noqa: BLE001  (a target need not adapt it)
            return False
        return all(hasattr(model.get_submodule(name), "lora_A") for name in life.turned)


USED = ("step", "autocast", "merge", "unmerge", "to-bfloat16", "deepcopy")
FILED = ("reload", "load-state", "assign", "transfer", "save", "load", "load-plain")
CONV1D: dict[str, Operation] = {
    "apply-inner": ApplyToConv1D("inner"),
    **{name: MODEL_OPERATIONS[name] for name in (*USED, *FILED)},
}
SIZES = {**MODEL_SIZES, "bias": (True,), "k": (4, 5), "n": (4, 5)}  # a square weight may be transposed unnoticed


@clause(
    "LIFE-MODEL-CONV1D",
    sentence="""After any sequence of operations on a model with adapted Conv1D layers of transformers, outputs,
    gradients and state are those of the formulas, and each weight is [in, out] as before, a square one too.""",
    why="A layer that mistakes a square weight for its transpose after a copy or a file raises no error.",
    cases=LifeSpace(CONV1D, MODEL_START, lacking_in(CONV1D, Conv1DLife), **SIZES),
    dtypes=("float64",),
    subjects=SUBJECT,
    library="transformers",
    weight=0.8,
)
def test_life_of_conv1d_layers(subject: Subject, case: LifeCase) -> float | None:
    return Conv1DLife(subject, case, MODEL_START).live(CONV1D, judge_whole)
