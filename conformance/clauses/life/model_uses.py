"""Operations that use a model: calls whose backward pass may come later, training steps, modes."""

from __future__ import annotations

from typing import Any

from conformance.clauses.life.model_chain import LAYERS
from conformance.clauses.life.model_judgement import judge_backward, judge_outputs
from conformance.clauses.life.model_life import PendingModel
from conformance.clauses.life.model_situation import ModelOperation, ModelSituation
from conformance.clauses.life.model_truth import ADAPTER
from conformance.judgement.linear_oracle import Expected
from conformance.numerics import budget
from conformance.numerics.formats import numbers

RATE = 2**-9  # small, so that many steps in a row do not diverge


class Forward(ModelOperation):
    """A forward pass whose graph is kept; its backward pass may come later."""

    name, keeps_graph = "forward", True

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(pending=True)

    def act(self, life: Any) -> None:
        life.inputs()
        life.run("kept_g, kept_tensors = g, tensors(model)\nkept_outputs = model(tokens)")
        life.pending = PendingModel(life.truth.copy())


class Backward(ModelOperation):
    """The backward pass of the last forward pass, whose values count."""

    name = "backward"

    def fits(self, now: ModelSituation) -> bool:
        return now.pending

    def act(self, life: Any) -> None:
        life.run("for tensor in kept_tensors.values():\n    tensor.grad = None\nbackward(kept_outputs, kept_g)")
        judge_backward(life, life.pending.truth, "kept_outputs", "kept_tensors")


class Step(ModelOperation):
    """A step of SGD, by an optimiser that lives as long as the adapters' Parameters do."""

    name = "step"

    def act(self, life: Any) -> None:
        truth = life.truth
        named = [(layer, part) for layer in truth.adapted for part in life.parts]
        held = [f"{layer}.{part}" for layer, part in named if part in truth.layers[layer].trainable]
        if not held:
            return
        if life.names["optimiser"] is None:
            life.run(f"optimiser = torch.optim.SGD([kept[name] for name in {held}], lr={RATE})")
        life.inputs()
        life.run("optimiser.zero_grad()\noutputs = model(tokens)\nbackward(outputs, g)\noptimiser.step()")
        outputs = life.arrays("outputs")
        for i, layer in enumerate(LAYERS, 1):
            g = life.names["outputs"][i].grad if i < len(LAYERS) else life.names["g"]
            if layer in truth.adapted:
                results = truth.results(layer, outputs[i - 1], numbers(g))[0]
                parts = sorted(truth.layers[layer].trained & set(ADAPTER))
                for part, gradient in [(part, results.of(part)) for part in parts]:  # both before either changes
                    self._judge(life, f"{layer}.{part}", gradient)

    @staticmethod
    def _judge(life: Any, name: str, gradient: Expected) -> None:
        """Judge an adapter after the step, and go on with its value."""
        dtype, before = life.truth.dtype_of(name), life.truth.tensors()[name]
        change = RATE * gradient.value
        allowed = budget.moved(before, change, dtype)
        allowed += 0.0 if gradient.budget is None else RATE * gradient.budget
        life.compare(f'kept["{name}"]', Expected(name, before - change, allowed, dtype, certified=False))
        life.truth.put(name, numbers(life.names["kept"][name].detach()).copy())


class Mode(ModelOperation):
    """Training mode or evaluation mode."""

    keeps_graph = True

    def __init__(self, name: str) -> None:
        self.name = name

    def act(self, life: Any) -> None:
        life.run(f"model.{self.name}()")
        for truth in life.truth.layers.values():
            truth.training = self.name == "train"


class Autocast(ModelOperation):
    """A call in an autocast region; what it casts must not outlive the region."""

    name, keeps_graph = "autocast", True

    def act(self, life: Any) -> None:
        judge_outputs(life, autocast=True)


USES = (Forward(), Backward(), Step(), Mode("train"), Mode("eval"), Autocast())
