"""Replaced layers keep their outputs, gradients, hooks and Parameters, and a LinearLoRA keeps its adapter."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases.case import Space
from conformance.cases.linear_case import LinearCase, tamed
from conformance.cases.operands import Operands
from conformance.cases.seeding import seed_torch
from conformance.clauses.dora.oracle import DoraOracle
from conformance.clauses.hybrid.frozen_layer import SMALL, Frozen, FrozenCase, judge_both
from conformance.clauses.hybrid.module_tree import conv1d, is_custom
from conformance.clauses.training.closed_form_network import ONE
from conformance.clauses.training.replace_layers import replace
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import LinearOracle
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import MAGNITUDE, adapter_of, fill_magnitude
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject, frozen_linear


@dataclass(frozen=True)
class ReplacedCase(FrozenCase):
    """A frozen layer that is replaced inside a model; `transposed` makes it a Conv1D."""


def _with_bias(case: ReplacedCase) -> ReplacedCase:
    fitted = SMALL.tame(case)
    assert isinstance(fitted, ReplacedCase)
    # a Conv1D always has a bias
    return type(fitted)(**{**vars(fitted), "bias": fitted.bias or fitted.transposed})


REPLACED = Space(ReplacedCase, tame=_with_bias, **SMALL.values)


def _model(frozen: Frozen) -> nn.Sequential:
    """A model whose second layer holds the case's weight and bias; the first is the identity."""
    case = frozen.case
    layer: Any = conv1d(case.n, case.k) if case.transposed else nn.Linear(case.k, case.n, bias=case.bias)
    layer.weight = nn.Parameter(frozen.weight, case.trainable)
    if frozen.bias is not None:
        layer.bias = nn.Parameter(frozen.bias, case.trainable)
    return nn.Sequential(nn.Identity(), layer)


@clause(
    "TRN-REP-SAME",
    sentence="A replaced nn.Linear or Conv1D computes the same y and dX as before.",
    cases=REPLACED.narrowed(lead=("2d", "3d", "1d")),
    dtypes=("float64", "float32", "bfloat16"),
)
def test_same_results(subject: Subject, case: ReplacedCase) -> float | None:
    frozen = Frozen(case, subject.device)
    model = _model(frozen)
    replace(subject, model, False)
    require(is_custom(model[1]), f"the layer {'Conv1D' if case.transposed else 'nn.Linear'} was not replaced")
    return judge_both(model, frozen)


@clause(
    "TRN-REP-TENSORS",
    sentence="""A replaced layer keeps the memory of its weight and bias, and the model's state_dict has as many
    entries as before.""",
    cases=REPLACED,
    dtypes=ONE,
    weight=0.5,
)
def test_tensors_kept(subject: Subject, case: ReplacedCase) -> float | None:
    frozen = Frozen(case, subject.device)
    model = _model(frozen)
    count = len(model.state_dict())
    replace(subject, model, False)
    layer: Any = model[1]
    for name, tensor in (("weight", frozen.weight), ("bias", frozen.bias)):
        if tensor is not None:
            held = [t for t in (*layer.parameters(), *layer.buffers()) if t.data_ptr() == tensor.data_ptr()]
            require(
                any(t.shape == tensor.shape for t in held),
                f"the replaced layer holds another {name} than the layer it replaces",
            )
    state = model.state_dict()
    require(len(state) == count, f"state_dict has {', '.join(state)} after replacement: expected {count} tensors")
    return None


@clause(
    "TRN-REP-HOOKS",
    sentence="""A layer's forward pre-hooks, forward hooks, full backward pre-hooks and full backward hooks survive
    its replacement, and each is called once.""",
    cases=REPLACED.narrowed(m=(2, 3), how=("forward_pre_hook", "forward_hook", "full_backward_hook")),
    dtypes=ONE,
    weight=0.5,
)
def test_hooks_survive(subject: Subject, case: ReplacedCase) -> float | None:
    frozen = Frozen(case, subject.device)
    model = _model(frozen)
    calls: list[str] = []

    def note(*_arguments: Any) -> None:
        calls.append(case.how)

    getattr(model[1], f"register_{case.how}")(note)
    before: list[int] = []
    model[1].register_full_backward_pre_hook(lambda *_: before.append(1))
    replace(subject, model, False)
    ratio = judge_both(model, frozen)
    require(len(calls) == 1, f"a {case.how} of the replaced layer was called {len(calls)} times: expected once")
    require(len(before) == 1, f"a full_backward_pre_hook of it was called {len(before)} times: expected once")
    return ratio


@clause(
    "TRN-REP-MODE",
    sentence="A replaced layer is in the same mode, train or eval, as the layer it replaces.",
    cases=REPLACED.narrowed(training=(True, False)),
    dtypes=ONE,
    weight=0.3,
)
def test_mode_kept(subject: Subject, case: ReplacedCase) -> float | None:
    model = _model(Frozen(case, subject.device)).train(case.training)
    replace(subject, model, False)
    modes = {name: module.training for name, module in model.named_modules() if module.training != case.training}
    require(not modes, f"after replacement .training is {not case.training} in {', '.join(modes)}")
    return None


@dataclass(frozen=True)
class LayerCase(LinearCase):
    """A `LinearCase` for the target's LinearLoRA, whose base product is replaced; `how` says how a state is loaded."""

    how: str = "copy"


def _layer(case: LayerCase) -> LayerCase:
    fitted = tamed(case)
    assert isinstance(fitted, LayerCase)
    return fitted


LAYERS = Space(
    LayerCase,
    tame=_layer,
    m=(2, 3, 17),
    k=(3, 5, 17),
    n=(2, 5, 16),
    r=(1, 2, 4),
    scale=(1.0, 2.0),
    bias=(False, True),
    values=("integers", "normal", "integers"),
    lead=("2d", "3d"),
)


@clause(
    "TRN-REP-LAYER",
    sentence="""In a LinearLoRA, the base product becomes base_layer, a CustomLinear, and the layer and its adapter
    stay: y, dX, dA and dB are the same as before.""",
    cases=LAYERS,
    dtypes=("float64", "float32", "bfloat16"),
    needs=("LinearLoRA",),
)
def test_lora_layer(subject: Subject, case: LayerCase) -> float | None:
    operands = Operands(case, subject.device)
    model, layer = _replaced(subject, operands)
    base = getattr(layer, "base_layer", None)
    require(model[1] is layer, "the LinearLoRA itself was exchanged: its adapter must stay at the client")
    require(base is not None and is_custom(base), f"LinearLoRA.base_layer is a {type(base).__name__}: no CustomLinear")
    x = operands.placed["x"].tensor.detach().requires_grad_(True)
    with calling("forward and backward of a LinearLoRA whose base product was replaced"):
        y = model(x)
        torch.autograd.backward([y], [operands.placed["g"].tensor])
    oracle = LinearOracle(operands)
    gradients = {"x": x.grad, "lora_A": adapter_of(layer, "lora_A").grad, "lora_B": adapter_of(layer, "lora_B").grad}
    return worst(judge(y, oracle.y), *(judge(gradients[name], oracle.gradient(name)) for name in gradients))


def _replaced(subject: Subject, operands: Operands, **options: Any) -> tuple[nn.Sequential, Any]:
    """A model whose second layer is the target's LinearLoRA with its base product replaced, and that layer."""
    case = operands.case
    with calling_quietly("LinearLoRA(nn.Linear, dim, alpha)"):
        layer = subject.target.LinearLoRA(frozen_linear(operands), dim=case.r, alpha=case.scale * case.r, **options)
    for name in ("lora_A", "lora_B"):
        with torch.no_grad():
            adapter_of(layer, name).copy_(operands.placed[name].tensor)
    model = nn.Sequential(nn.Identity(), layer)
    replace(subject, model, False)
    return model, layer


@clause(
    "TRN-REP-LAYER-DORA",
    sentence="In a LinearLoRA with use_dora=True, y is the same after its base product is replaced.",
    cases=LAYERS.narrowed(values=("normal",), k=(5, 17), scale=(0.5, 1.0)),
    dtypes=("float64", "float32"),
    needs=("LinearLoRA", "LinearLoRA(use_dora)"),
    weight=0.5,
)
def test_dora_layer(subject: Subject, case: LayerCase) -> float | None:
    operands = Operands(case, subject.device)
    model, layer = _replaced(subject, operands, use_dora=True)
    magnitude = np.linspace(0.5, 2.0, case.n)
    with torch.no_grad():
        fill_magnitude(adapter_of(layer, MAGNITUDE), torch.from_numpy(magnitude))
        with calling("the forward pass of a DoRA layer whose base product was replaced"):
            y = model(operands.placed["x"].tensor)
    oracle = DoraOracle(operands, numbers(adapter_of(layer, MAGNITUDE)))
    expected = oracle.y()
    if oracle.bias is not None:  # a remote product adds the bias, which is subtracted before the product with m′
        base = np.abs(oracle.x @ oracle.weight.T).reshape(expected.value.shape) + 2 * np.abs(oracle.bias)
        assert expected.budget is not None
        allowed = expected.budget + 2 * oracle.how.unit * base * np.abs(oracle.factor)
        expected = dataclasses.replace(expected, budget=allowed)
    return judge(y, expected)


@clause(
    "TRN-REP-LAYER-LOADED",
    sentence="""After its base product is replaced, a LinearLoRA computes with the weights that load_state_dict
    loads, in place or with assign=True.""",
    cases=LAYERS.narrowed(values=("integers",), how=("assign", "copy"), scale=(1.0,), bias=(True,)),
    dtypes=ONE,
    needs=("LinearLoRA",),
    weight=0.5,
)
def test_loaded_layer(subject: Subject, case: LayerCase) -> float | None:
    model, layer = _replaced(subject, Operands(case, subject.device))
    other = dataclasses.replace(case, seed=case.seed + 1)
    operands = Operands(other, subject.device)
    _, source = _replaced(subject, operands)
    with calling(f"load_state_dict(…, assign={case.how == 'assign'}) of a LinearLoRA whose base product was replaced"):
        layer.load_state_dict(source.state_dict(), assign=case.how == "assign")
        with torch.no_grad():
            y = model(operands.placed["x"].tensor)
    return judge(y, LinearOracle(operands).y)


@clause(
    "TRN-REP-LAST",
    sentence="Gradients pass through every replaced layer: a model of several layers has the same y and dX as before.",
    cases=REPLACED.narrowed(values=("normal",), transposed=(False,), k=(3, 5), n=(2, 5), m=(2, 3)),
    dtypes=("float64",),
    weight=0.5,
)
def test_gradient_through_several(subject: Subject, case: ReplacedCase) -> float | None:
    seed_torch(case.seed)
    model = nn.Sequential(
        nn.Linear(case.k, case.n), nn.Tanh(), nn.Linear(case.n, case.k), nn.GELU(), nn.Linear(case.k, case.n)
    )
    model = model.to(subject.device, torch.float64).requires_grad_(False)
    plain = copy.deepcopy(model)
    replace(subject, model, False)
    gradients, outputs = [], []
    for net in (plain, model):
        x = torch.linspace(-1, 1, case.m * case.k, dtype=torch.float64, device=subject.device)
        x = x.reshape(case.m, case.k).requires_grad_(True)
        with calling("forward and backward of the model"):
            y = net(x)
            y.square().sum().backward()
        require(x.grad is not None, "the model's input got no gradient")
        gradients.append(numbers(x.grad))  # type: ignore[arg-type]
        outputs.append(numbers(y))
    for name, (wanted, got) in (("y", outputs), ("dX", gradients)):
        off = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        require(off <= 1e-12, f"{name} of the model is off by {off:.3g} after its layers were replaced")
    return None
