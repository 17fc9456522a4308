"""What must hold of a layer after every operation of its life: its output, its gradients, its state."""

from __future__ import annotations

import dataclasses

from conformance.clauses.life.layer_life import TENSORS, Life
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array
from conformance.target.adapter_tensors import name_in_state, scale_of

MODES = ("enable_grad", "no_grad", "inference_mode")


def judge_output(life: Life, mode: str = "", call: str = "layer(x)", *, autocast: bool | None = None) -> None:
    """Judge y of one more call, in turn with a graph, under no_grad and under inference_mode."""
    chosen = mode or MODES[len(life.past) % len(MODES)]
    inside = life.autocast if autocast is None else autocast

    def check() -> None:
        x, g = life.inputs(autocast=inside)
        life.run(f"with torch.{chosen}():\n    y = {call}")
        life.compare("y", *life.expected(x, g, "y", autocast=inside))

    life.decided(check)


def judge_gradients(
    life: Life, call: str = "y = layer(x)", *, autocast: bool | None = None, output: bool = False
) -> None:
    """Judge the gradients of one more call, and with `output` its y too."""
    truth = life.truth
    wanted = truth.trained
    inside = life.autocast if autocast is None else autocast

    def check() -> None:
        x, g = life.inputs(autocast=inside, requires_grad="x" in wanted)
        clear = "\n".join(f"{name}.grad = None" for name in TENSORS if life.names[name] is not None)
        if life.now.base != "plain":  # a parametrised weight is a new tensor at each look
            clear = clear.replace("weight.grad = None", "")
        life.run(f"{clear}\n{call}")
        life.require("y.requires_grad", f"y does not require grad, although {', '.join(sorted(wanted))} should get one")
        life.backward("y", "g")
        results = truth.results(x, g, autocast=inside)
        if output:
            life.compare("y", *(result.of("y") for result in results))
        life.gradients(truth, results)
        if life.now.base == "plain":
            life.require("weight.grad is None", "the weight got a gradient, although it is frozen")

    if wanted:
        life.decided(check)


def judge_both(life: Life) -> None:
    """Judge y, and the gradients."""
    judge_output(life)
    judge_gradients(life)


def judge_one_call(life: Life) -> None:
    """Judge y and the gradients of the same call, where a further call would be compiled anew."""
    if life.truth.trained:
        judge_gradients(life, output=True)
    else:
        judge_output(life)


def judge_state(life: Life) -> None:
    """Judge the tensors that the layer holds, whether they require grad, its modes and its state_dict."""
    truth, plain = life.truth, life.now.base == "plain"
    judged = [name for name in TENSORS if name in truth.values and (name != "weight" or plain)]
    checks = []
    for name in judged:
        same = f'held(layer, "{name}") is {name}'
        checks.append((same, f"{name} is another Parameter: an optimiser would go on training the one before"))
        grad = name in truth.trainable
        checks.append((f"{name}.requires_grad is {grad}", f"{name} {'does not require' if grad else 'requires'} grad"))
    checks.append((f"layer.training is {truth.training}", f"training is {not truth.training}"))
    if (scale := scale_of(life.layer)) is not None:
        checks.append((f"{scale} == {truth.scale}", f"the scale is {scale}: expected {truth.scale}"))
    life.require_all(checks)
    for name in judged:
        life.compare(name, _tensor(life, name))
    if plain:
        _judge_state_dict(life)


def _tensor(life: Life, name: str) -> Expected:
    truth, merged, value = life.truth, life.truth.merged, life.truth.values[name]
    limit: Array | None = None
    if name == "weight" and merged is not None:
        value, limit = value + merged.scale * (merged.lora_B @ merged.lora_A), merged.allowed
    return Expected(name, value, limit, truth.dtype_of(name), certified=False)


def _judge_state_dict(life: Life) -> None:
    """The state_dict has the keys of a new layer, and the unmerged values, or as declared the merged weight."""
    truth = life.truth
    life.run("state = layer.state_dict()")
    keys = sorted(life.names["state"])
    if keys != life.new_keys():
        life.require(
            "sorted(state) == sorted(build(torch.float32, torch.float32).state_dict())",
            f"the state_dict has the keys {keys}, other than a new layer's",
        )
    for key in keys:
        name = name_in_state(key, life.named)
        if name is None or name not in truth.values:
            continue
        expected = _tensor(life, name)
        if name == "weight" and truth.merged is not None and not life.subject.follows("merged_state", "merged"):
            expected = dataclasses.replace(expected, value=truth.values[name], budget=truth.unmerged_allowance())
        life.compare(f"state[{key!r}]", dataclasses.replace(expected, name=f"state_dict()[{key!r}]"))
