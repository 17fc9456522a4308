"""Operations that use a layer and leave it as it is: calls in every mode, and training steps."""

from __future__ import annotations

from typing import Any

from conformance.clauses.life.layer_judgement import judge_gradients, judge_output
from conformance.clauses.life.layer_life import Pending
from conformance.clauses.life.situation import DEEPEST, OFF, ON, Operation, Situation
from conformance.judgement.linear_oracle import Expected
from conformance.numerics import budget
from conformance.numerics.formats import numbers

RATE = 0.125
SELECTIVE = "lambda: create_selective_checkpoint_contexts([torch.ops.aten.mm.default, torch.ops.aten.addmm.default])"
IN_A_THREAD = """
with ThreadPoolExecutor(1) as pool:
    y = pool.submit(layer, x).result()"""


class Forward(Operation):
    """A forward pass whose graph is kept; its backward pass may come later."""

    name, keeps_graph = "forward", True

    def effect(self, now: Situation) -> Situation:
        return now.but(pending=True)

    def act(self, life: Any) -> None:
        truth = life.truth.copy()
        x, g = life.inputs(autocast=life.autocast, requires_grad="x" in truth.trainable)
        tensors = "kept_x, kept_g, kept_bias, kept_lora_A, kept_lora_B = x, g, bias, lora_A, lora_B"
        life.run(f"{tensors}\nkept = layer(x)")
        life.pending = Pending(x, g, truth, life.autocast)


class Backward(Operation):
    """The backward pass of the last forward pass, whose values count."""

    name = "backward"

    def fits(self, now: Situation) -> bool:
        return now.pending

    def act(self, life: Any) -> None:
        pending = life.pending
        truth = pending.truth
        if truth.trained:
            tensors = [
                f"kept_{name}" for name in ("bias", "lora_A", "lora_B") if life.names[f"kept_{name}"] is not None
            ]
            life.run("\n".join(f"{name}.grad = None" for name in tensors))
            life.backward("kept", "kept_g")
            results = truth.results(pending.x, pending.g, autocast=pending.autocast)
            life.gradients(truth, results, "kept_")


class Step(Operation):
    """A step of SGD, by an optimiser that lives as long as the layer's Parameters do."""

    name = "step"

    def fits(self, now: Situation) -> bool:
        return not now.merged and not now.regions

    def act(self, life: Any) -> None:
        truth = life.truth
        trained = sorted(truth.trained & {"lora_A", "lora_B"})
        if not trained:
            return
        if life.names["optimiser"] is None:
            life.run(f"optimiser = torch.optim.SGD([lora_A, lora_B], lr={RATE})")
        x, g = life.inputs(autocast=False)
        life.run("optimiser.zero_grad()\nlayer(x).backward(g)\noptimiser.step()")
        (results,) = truth.results(x, g, autocast=False)
        for name in trained:
            gradient, before = results.of(name), truth.values[name]
            change = RATE * gradient.value
            allowed = budget.moved(before, change, truth.adapter_dtype)
            allowed += 0.0 if gradient.budget is None else RATE * gradient.budget
            life.compare(name, Expected(name, before - change, allowed, truth.adapter_dtype, certified=False))
            truth.values[name] = numbers(life.names[name]).copy()  # float64 shares memory


class Call(Operation):
    """A call in a mode without a graph."""

    keeps_graph = True

    def __init__(self, name: str, mode: str) -> None:
        self.name, self.mode = name, mode

    def act(self, life: Any) -> None:
        judge_output(life, self.mode)


class Checkpoint(Operation):
    """Forward and backward with gradient checkpointing: of everything, and selectively, with the products kept."""

    name, keeps_graph = "checkpoint", True

    def act(self, life: Any) -> None:
        judge_gradients(life, "y = checkpoint(layer, x, use_reentrant=False)")
        judge_gradients(life, f"y = checkpoint(layer, x, use_reentrant=False, context_fn={SELECTIVE})")


class InAThread(Operation):
    """A forward pass in another thread, outside this one's autocast regions."""

    name, keeps_graph = "thread", True

    def act(self, life: Any) -> None:
        judge_gradients(life, IN_A_THREAD, autocast=False)


class Enter(Operation):
    """Entering an autocast region, or one that turns autocast off."""

    keeps_graph = True

    def __init__(self, name: str, state: str) -> None:
        self.name, self.state = name, state

    def fits(self, now: Situation) -> bool:
        return len(now.regions) < DEEPEST and (self.state == ON or now.autocast)

    def available(self, life: Any) -> bool:
        return not life.subject.lacks("autocast")

    def effect(self, now: Situation) -> Situation:
        return now.but(regions=(*now.regions, self.state))

    def act(self, life: Any) -> None:
        region = f'torch.autocast("cpu", dtype=torch.bfloat16, enabled={self.state == ON})'
        life.run(f"regions.append({region})\nregions[-1].__enter__()")


class Leave(Operation):
    """Leaving the innermost autocast region."""

    name, keeps_graph = "leave", True

    def fits(self, now: Situation) -> bool:
        return bool(now.regions)

    def effect(self, now: Situation) -> Situation:
        return now.but(regions=now.regions[:-1])

    def act(self, life: Any) -> None:
        life.run("regions.pop().__exit__(None, None, None)")


USES = (
    Forward(),
    Backward(),
    Step(),
    Call("no-grad", "no_grad"),
    Call("inference", "inference_mode"),
    Checkpoint(),
    InAThread(),
    Enter("autocast", ON),
    Enter("autocast-off", OFF),
    Leave(),
)
