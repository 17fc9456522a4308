"""What must hold of a model after every operation of its life: outputs, gradients, parameters, its state_dict.

Each layer is judged with the input and the upstream gradient that it received in the model. Its error budget is then
that of one layer, and no tolerance has to cover how a whole model amplifies a rounding error.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from conformance.clauses.life.model_chain import LAYERS
from conformance.clauses.life.model_life import ModelLife
from conformance.clauses.life.model_truth import ADAPTER, ModelTruth
from conformance.clauses.life.truth import LOW
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array, numbers
from conformance.target.adapter_tensors import name_in_state

MODES = ("enable_grad", "no_grad", "inference_mode")


def judge_outputs(life: ModelLife, *, autocast: bool = False) -> None:
    """Judge the outputs of one more call, in turn with a graph, under no_grad and under inference_mode.

    Autocast leaves float64 alone.
    """
    region = f"torch.{MODES[len(life.past) % len(MODES)]}()"
    if autocast:
        region += f', torch.autocast("cpu", dtype={LOW})'
    lowered = autocast and life.truth.dtype != torch.float64

    def check() -> None:
        life.inputs()
        life.run(f"with {region}:\n    outputs = model(tokens)")
        truth, outputs = life.truth, life.arrays("outputs")
        words = truth.words(life.names["tokens"].numpy())
        life.compare("outputs[0]", Expected("the output of embed", words, None, truth.dtype, certified=False))
        for i, layer in enumerate(LAYERS, 1):
            results = truth.results(layer, outputs[i - 1], outputs[i], autocast=lowered)
            life.compare(f"outputs[{i}]", *(_named(one.of("y"), f"the output of {layer}") for one in results))

    life.decided(check)


def judge_gradients(life: ModelLife) -> None:
    """Judge the gradients of one more call."""

    def check() -> None:
        life.inputs()
        life.run("model.zero_grad()\noutputs = model(tokens)\nbackward(outputs, g)")
        judge_backward(life, life.truth, "outputs", "kept")

    life.decided(check)
    frozen = "[name for name, p in model.named_parameters() if p.grad is not None and not p.requires_grad]"
    life.require(f"not {frozen}", "a frozen parameter got a gradient")


def judge_backward(life: ModelLife, truth: ModelTruth, outputs: str, kept: str) -> None:
    """Judge every gradient after a backward pass."""
    values = life.arrays(outputs)
    for i, layer in reversed(list(enumerate(LAYERS, 1))):
        own = truth.layers[layer]
        g = life.names[outputs][i].grad
        if i == len(LAYERS):
            g = life.names["g" if outputs == "outputs" else "kept_g"]
        results = truth.results(layer, values[i - 1], numbers(g))
        life.compare(f"{outputs}[{i - 1}].grad", *(_named(one.of("x"), f"dX of {layer}") for one in results))
        for part in (*life.parts, "bias"):
            _judge_gradient(life, truth, f"{layer}.{part}", f'{kept}["{layer}.{part}"].grad', results, own)


def _judge_gradient(life: ModelLife, truth: ModelTruth, name: str, text: str, results: Any, own: Any) -> None:
    layer, _, part = name.partition(".")
    if part not in own.values or part not in own.trainable or (part in ADAPTER and layer not in truth.adapted):
        return
    if part in ADAPTER and own.merged is not None:
        return
    if part in ADAPTER and own.vanishing and own.training:
        life.require(f"{text} is None or not {text}.any()", f"{name} has a gradient at p = 1, where it is zero")
        return
    short = {"lora_A": "dA", "lora_B": "dB", "lora_magnitude": "dm", "bias": "dbias"}[part]
    life.compare(text, *(_named(one.of(part), f"{short} of {layer}") for one in results))


def judge_whole(life: ModelLife) -> None:
    """Judge outputs, gradients and state."""
    judge_outputs(life)
    judge_gradients(life)
    judge_state(life)


def judge_state(life: ModelLife) -> None:
    """Judge the tensors that the model holds, which require grad, its modes and its state_dict."""
    truth = life.truth
    life.run("held = tensors(model)")
    values, trainable = truth.tensors(), truth.trainable()
    have = f"the tensors {sorted(life.names['held'])}: expected {sorted(values)}"
    checks = [(f"sorted(held) == {sorted(values)}", f"the model has {have}")]
    same = "[name for name in held if held[name] is not kept[name]]"
    others = [name for name in life.names["held"] if life.names["held"][name] is not life.names["kept"].get(name)]
    lost = f"{', '.join(others)} is another Parameter: an optimiser would train the one before"
    checks.append((f"not {same}", lost))
    grads = {name: tensor.requires_grad for name, tensor in life.names["held"].items()}
    wrong = [name for name, wanted in trainable.items() if grads.get(name) is not wanted]
    flags = {name: wanted for name, wanted in trainable.items() if name in wrong or not wrong}
    said = f"{wrong[0]} {'requires' if grads.get(wrong[0]) else 'does not require'} grad" if wrong else ""
    checks.append((f"all(held[name].requires_grad is wanted for name, wanted in {flags}.items())", said))
    checks.append((f"model.training is {truth.training}", f"training is {not truth.training}"))
    modes = "[name for name, module in model.named_modules() if module.training is not model.training]"
    checks.append((f"not {modes}", "a part of the model is in another mode than the model"))
    if truth.tied:
        tied = 'held["head.weight"] is held["embed.weight"]'
        checks.append((tied, "the head is no longer tied to the embedding: it has another weight"))
    life.require_all(checks)
    for name, value in values.items():
        life.compare(life.matrix(f'held["{name}"]', name), _held(truth, name, value))
    _judge_state_dict(life)


def _held(truth: ModelTruth, name: str, value: Array) -> Expected:
    limit: Array | None = None
    layer, _, part = name.partition(".")
    merged = truth.layers[layer].merged if part == "weight" and layer != "embed" else None
    if merged is not None:
        value, limit = value + merged.scale * (merged.lora_B @ merged.lora_A), merged.allowed
    return Expected(name, value, limit, truth.dtype_of(name), certified=False)


def _judge_state_dict(life: ModelLife) -> None:
    """The state_dict has the keys of a new model that is adapted alike, and the unmerged values, or as declared."""
    truth = life.truth
    life.run("state = model.state_dict()")
    found = sorted(life.names["state"])
    life.require(
        f"sorted(state) == {life.new_keys()}", f"the state_dict has the keys {found}, other than a new model's"
    )
    values = truth.tensors()
    for key in life.names["state"]:
        layer = key.partition(".")[0]
        part = name_in_state(key, life.named)
        value = values.get(f"{layer}.{part}")
        if value is None:
            continue
        expected, own = _held(truth, f"{layer}.{part}", value), truth.layers.get(layer)
        if part == "weight" and own is not None and own.merged and not life.subject.follows("merged_state", "merged"):
            expected = dataclasses.replace(expected, value=value, budget=own.unmerged_allowance())
        life.compare(life.matrix(f"state[{key!r}]", f"{layer}.{part}"), _named(expected, f"state_dict()[{key!r}]"))


def _named(expected: Expected, name: str) -> Expected:
    return dataclasses.replace(expected, name=name)
