"""A right `LoraTraining` whose replaced layers hold their weights under other names is judged by its values."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

import reference
from conformance.judgement.result import Result
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.baselines.training import Replacing, Right, Step


class TwoProducts(nn.Module):
    """A replaced layer whose two modules each hold the weight, as in Concrete ML; it has none itself."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.forward_module = reference.ForwardModuleLinear(layer.weight, layer.bias)
        self.backward_module = reference.BackwardModuleLinear(layer.weight)

    def forward(self, x: Tensor) -> Any:
        return reference.ForwardBackwardModule.apply(x, self.forward_module, self.backward_module)


class HoldsWeightsInParts(Right):
    """A target that replaces layers by these."""

    class replacing(Replacing):  # noqa: N801  (the attribute of a `Right`)
        def custom(self, module: Any) -> Any:
            return self.kept(module, TwoProducts(module))


class TrainsTheAdaptersAlone(HoldsWeightsInParts):
    """The same, which gives no gradient to trainable weights that are no adapters."""

    class training(Step):  # noqa: N801
        def differentiate(self, loss: Tensor) -> None:
            super().differentiate(loss)
            for name, parameter in self.inference_model.named_parameters():
                if "lora" not in name:
                    parameter.grad = None


def judged(target: Any) -> Result:
    """What the suite says of a target by TRN-ALL-TRAINABLE."""
    clause = load_all()["TRN-ALL-TRAINABLE"]
    (subject,) = Target.of(target, "mine").subjects(clause)
    return Examination(clause, subject, "float64", PROFILES["quick"]).run()


@pytest.mark.parametrize(("kind", "status"), [(HoldsWeightsInParts, "pass"), (TrainsTheAdaptersAlone, "fail")])
def test_weights_under_other_names_are_judged(kind: type[Right], status: str) -> None:
    found = judged(kind())
    assert found.status == status, found.message
    assert "has no attribute" not in (found.message or "")
