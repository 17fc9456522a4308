"""Right but different ways of saving and loading: every clause of group `checkpoint` must pass on them."""

from __future__ import annotations

import dataclasses

import pytest

from conformance.judgement.result import ANY_DTYPE
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.baselines.checkpoint import Right

# without the rows that the clauses share out: they are for the targets of a run
PROFILE = dataclasses.replace(PROFILES["quick"], volume=1, shares=False)


class TakesTheScaleOver(Right):
    """Takes the scale from the file, where the reference refuses a model with another scale."""

    def check_layer(self, layer, config):
        if layer.dim != config.dim:
            raise ValueError(f"the model has rank {layer.dim}: expected {config.dim}")
        self.taken = config

    def copy(self, layers, named):
        super().copy(layers, named)
        for layer in layers.values():
            layer.alpha, layer.use_rslora = self.taken.alpha, self.taken.use_rslora
            layer.scale = layer.alpha / (layer.dim**0.5 if layer.use_rslora else layer.dim)


class ListsTargetsAsRegistered(Right):
    """Lists target modules in the model's order, unless another module's name ends with one of these names."""

    def targets(self, config, model, names):
        ends = tuple(f".{name}" for name in names)
        if any(name.endswith(ends) for name, _ in model.named_modules()):
            return super().targets(config, model, names)
        return list(self.layers(model))


@pytest.mark.parametrize(
    "target", [Right(), TakesTheScaleOver(), ListsTargetsAsRegistered()], ids=lambda target: type(target).__name__
)
def test_no_checkpoint_clause_fails_a_right_implementation(target: object) -> None:
    alarms = []
    for clause in load_all().values():
        if clause.group != "checkpoint":
            continue
        for subject in Target.of(target, "right").subjects(clause):
            for dtype in clause.dtypes[:1] or [ANY_DTYPE]:
                result = Examination(clause, subject, dtype, PROFILE).run()
                if result.status != "pass":
                    alarms.append(f"{clause.id} {result.status}: {result.case}\n{result.message}")
    assert not alarms, "\n\n".join(alarms)
