"""A model with DoRA adapters: it lives as any other, and each layer's magnitude lives with it."""

from __future__ import annotations

import numpy as np
import torch

from conformance.clauses.dora.oracle import DoraOracle
from conformance.clauses.life.life_case import LifeCase, LifeSpace
from conformance.clauses.life.model import MODEL_OPERATIONS, MODEL_SIZES, MODEL_START, SUBJECT, lacking_in
from conformance.clauses.life.model_judgement import judge_whole
from conformance.clauses.life.model_life import ModelLife
from conformance.clauses.life.model_truth import ADAPTER
from conformance.clauses.life.situation import Operation
from conformance.clauses.life.truth import LifeOperands, Merge, Results, Truth
from conformance.judgement.linear_oracle import Expected
from conformance.numerics import budget
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array, rounded
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import MAGNITUDE
from conformance.target.subject import Subject


class DoraResults(Results):
    """The expected results of one call of a layer with a DoRA adapter."""

    dora: DoraOracle

    def of(self, name: str) -> Expected:
        """The expected y, or the gradient of x, lora_A, lora_B, lora_magnitude or bias."""
        if name == "y":
            return self.dora.y()
        return self.dora.bias_gradient() if name == "bias" else self.dora.gradient(name)


class DoraTruth(Truth):
    """The exact state of a layer that has a DoRA adapter, or none yet.

    Attributes:
        differentiated, scaled: whether the norm is differentiated, and whether the magnitude scales the bias.
    """

    differentiated = scaled = False

    @property
    def trained(self) -> set[str]:
        """The tensors that get a gradient."""
        return super().trained - (set() if self.merged is None else {MAGNITUDE})

    def results(self, x: Array, g: Array, *, autocast: bool) -> list[Results]:
        """The results that are right for these x and g."""
        if self.merged is not None:
            return [Results(self, x, g, autocast, *self.merged.adapters[0])]
        if not self.scale:
            return super().results(x, g, autocast=autocast)
        results = DoraResults(self, x, g, autocast, self.values["lora_A"], self.values["lora_B"], self.scale)
        results.dora = self._oracle({**self.values, "x": x, "g": g})
        return [results]

    def merge(self) -> None:
        """Merge the update, which is not of rank r: the merged weight is m ⊙ V ÷ ‖V‖ with V = W + s·B A."""
        if self.merged is not None:
            return
        width, height = self.values["lora_A"].shape[1], len(self.values["lora_B"])
        oracle = self._oracle({**self.values, "x": np.zeros((1, width)), "g": np.zeros((1, height))})
        merged = oracle.factor[:, None] * oracle.adapted
        update, how = merged - self.weight, Rounding(self.dtype, self.adapter_dtype)
        plain = budget.merged_weight(self.weight, self.values["lora_A"], self.values["lora_B"], self.scale, how)
        allowed = np.abs(oracle.factor)[:, None] * plain + np.abs(merged) * oracle.relative[:, None]
        allowed = allowed + 2 * how.unit * (np.abs(merged) + np.abs(self.weight)) + 2 * how.step
        self.merged = Merge(np.eye(width), update, 1.0, allowed, (self.dtype, self.adapter_dtype))

    def _oracle(self, values: dict[str, Array]) -> DoraOracle:
        operands = LifeOperands(values, self.scale, (self.dtype, self.adapter_dtype), autocast=False)
        conventions = {"differentiated": self.differentiated, "scaled": self.scaled}
        return DoraOracle(operands, self.values[MAGNITUDE], None, "", **conventions)


class DoraLife(ModelLife):
    """A model with DoRA adapters, and the truth about it."""

    parts = ADAPTER
    options = ", use_dora=True"

    def truth_of_layer(self, values: dict[str, Array], dtype: torch.dtype, trainable: set[str]) -> Truth:
        truth = DoraTruth(values, 0.0, dtype, dtype, trainable=trainable)
        truth.differentiated = self.subject.follows("dora_norm", "differentiated")
        truth.scaled = self.subject.follows("dora_bias", "scaled")
        return truth

    def values(self, name: str) -> Array:
        if name.endswith(MAGNITUDE):
            return rounded(1.0 + super().values(name) % 1.0, self.truth.dtype_of(name))
        return super().values(name)


USED = ("apply-inner", "apply-outer", "forward", "backward", "step", "merge", "unmerge", "to-bfloat16", "deepcopy")
FILED = ("reload", "load-state", "transfer", "save", "load", "load-plain")
DORA: dict[str, Operation] = {name: MODEL_OPERATIONS[name] for name in (*USED, *FILED)}
SIZES = {**MODEL_SIZES, "k": (5, 6), "n": (6, 7), "scale": (0.5, 1.0), "adapter": ("same",), "dropout": (0.0,)}


@clause(
    "LIFE-MODEL-DORA",
    sentence="""After any sequence of operations on a model with DoRA adapters, outputs, gradients and state are those
    of the formulas with the present weights, adapters and magnitudes.""",
    why="A norm that is kept, or a magnitude that a copy, a file or a merge leaves behind, shows after two operations.",
    cases=LifeSpace(DORA, MODEL_START, lacking_in(DORA, DoraLife), **SIZES),
    dtypes=("float64",),
    subjects=SUBJECT,
    needs=("PeftConfig(use_dora)",),
    weight=0.95,
)
def test_life_of_dora_adapters(subject: Subject, case: LifeCase) -> float | None:
    return DoraLife(subject, case, MODEL_START).live(DORA, judge_whole)
