"""Group `layer`: `LinearLoRA` and `TritonLinearLoRA` as modules."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import pickle
from typing import Any

import numpy as np
import torch

from conformance import layer as layers
from conformance import requirements
from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.cases.seeding import seed_torch
from conformance.judgement.judge import calling, judge, require, worst
from conformance.layer.same import same_results
from conformance.numerics.formats import dtype_named, numbers
from conformance.requirements.base import SMALL, judge_gradients, oracle_for
from conformance.requirements.dropout import PROBE, judge_relation, read_mask, started
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Instance, Subject, frozen_linear, run

globals().update(requirements.declare("LAY", "layer"))

WITH_BIAS = SMALL.narrowed(bias=(True,))
INIT = SMALL.narrowed(m=(1,), k=(256, 300), n=(64, 33), r=(16, 64, 33), values=("normal",), bias=(False,))


def fresh(subject: Subject, operands: Operands, **options: Any) -> Any:
    """A layer as its constructor leaves it, over the case's frozen linear layer."""
    seed_torch(operands.case.seed)
    shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
    with calling(f"{subject.name}(linear, {shown})"):
        return subject.thing(frozen_linear(operands), **options)


@clause(
    "LAY-SCALING",
    "scale is alpha/dim, or alpha/√dim with use_rslora, as an attribute and in y.",
    group="layer",
    cases=SMALL.narrowed(r=(2, 3, 4, 16), values=("normal",)),
    weight=0.5,
)
def test_scaling(subject: Subject, case: LinearCase) -> float | None:
    rslora = bool(case.seed % 2)
    alpha = (16, 3, 32)[case.seed % 3]
    scale = alpha / (math.sqrt(case.r) if rslora else case.r)
    operands = subject.operands(dataclasses.replace(case, scale=scale))
    instance = subject.build(operands, alpha=alpha, use_rslora=rslora)
    with calling(f"{subject.name}.scale"):
        seen = float(instance.module.scale)
    require(
        math.isclose(seen, scale, rel_tol=1e-6),
        f"scale is {seen:.6g} for alpha={alpha}, dim={case.r}, use_rslora={rslora}: expected {scale:.6g}",
    )
    instance.require_grad(TRAINABLE)
    return judge(instance.forward(), oracle_for(subject, operands).y)


@clause(
    "LAY-DEFAULTS",
    "A layer built without options has rank 8, alpha 32 and no dropout.",
    group="layer",
    cases=SMALL.narrowed(r=(8,), scale=(4.0,), training=(True,)),
    weight=0.34,
)
def test_defaults(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(dataclasses.replace(case, r=8, scale=4.0))
    layer = fresh(subject, operands)
    for name, shape in (("lora_A", [8, case.k]), ("lora_B", [case.n, 8])):
        parameter = getattr(layer, name).weight
        require(
            list(parameter.shape) == shape, f"{name}.weight is {list(parameter.shape)} by default: expected {shape}"
        )
        with torch.no_grad():
            parameter.copy_(operands.placed[name].tensor)
    instance = Instance(layer, {"x": operands.placed["x"].tensor}, operands)
    return judge(instance.forward(), oracle_for(subject, operands).y)


@clause(
    "LAY-INIT",
    "A fresh adapter has B = 0, and A as xavier_normal_ or kaiming_uniform_(a=√5) draws it.",
    group="layer",
    cases=INIT,
    weight=0.5,
)
def test_initialisation(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    method = ("xavier", "uniform", "kaiming")[case.seed % 3]
    layer = fresh(subject, operands, dim=case.r, lora_A_init_method=method)
    require(not numbers(layer.lora_B.weight).any(), "a fresh lora_B is not zero")
    values = numbers(layer.lora_A.weight)
    bound = 1 / math.sqrt(case.k)
    wanted = math.sqrt(2 / (case.k + case.r)) if method == "xavier" else bound / math.sqrt(3)
    # the standard error of a standard deviation is at most 1/√(2n) of it; six of them, and 16-bit storage
    slack = 6 / math.sqrt(2 * values.size) + 0.004
    spread = float(values.std())
    require(
        abs(spread / wanted - 1) <= slack,
        f"lora_A ({method}) has standard deviation {spread:.4g}: expected {wanted:.4g} within {slack:.0%}",
    )
    mean = abs(float(values.mean()))
    require(mean <= 6 * wanted / math.sqrt(values.size), f"lora_A ({method}) has mean {mean:.3g}: expected 0")
    # a uniform draw ends at its bound, √3 standard deviations; a normal one of this size always passes it
    normal = float(np.abs(values).max()) > 1.01 * bound if method != "xavier" else None
    require(not normal, f"lora_A ({method}) reaches {np.abs(values).max():.4g}: expected at most {bound:.4g}")
    if method == "xavier":
        kurtosis = float((values**4).mean() / spread**4)
        require(
            abs(kurtosis - 3) <= 6 * math.sqrt(24 / values.size) + 0.05,
            f"lora_A (xavier) has kurtosis {kurtosis:.2f}: expected 3, a normal distribution",
        )
    return None


@clause(
    "LAY-FRESH",
    "A fresh layer computes what the linear layer it was built from computes.",
    group="layer",
    cases=SMALL,
    weight=0.34,
)
def test_fresh_layer(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(dataclasses.replace(case, special="zero-B"))
    layer = fresh(subject, operands, dim=case.r, alpha=case.r)
    instance = Instance(layer, {"x": operands.placed["x"].tensor}, operands)
    return judge(instance.forward(), oracle_for(subject, operands).y)


@clause(
    "LAY-FREEZE",
    "W and b do not require grad and get none; lora_A and lora_B require grad.",
    group="layer",
    cases=WITH_BIAS,
    weight=0.34,
)
def test_frozen(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    for name in ("weight", "bias"):
        require(not instance.tensors[name].requires_grad, f"{name} requires grad: expected it frozen")
    for name in ("lora_A", "lora_B"):
        require(instance.tensors[name].requires_grad, f"{name}.weight does not require grad: expected it trainable")
    instance.tensors["x"].requires_grad_()
    instance.backward(instance.forward())
    for name in ("weight", "bias"):
        require(instance.gradient(name) is None, f"{name} is frozen and got a gradient")
    return judge_gradients(instance, oracle_for(subject, operands))


@clause(
    "LAY-BIAS",
    "A bias made trainable by requires_grad_(True) gets Σ g as its gradient; the others stay right.",
    group="layer",
    cases=WITH_BIAS,
    weight=0.5,
)
def test_trainable_bias(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = run(subject, operands, (*TRAINABLE, "bias"))
    return judge_gradients(instance, oracle_for(subject, operands), (*TRAINABLE, "bias"))


@clause(
    "LAY-TRAIN",
    "Dropout follows train() and eval(), switched at any time.",
    group="layer",
    cases=PROBE,
    weight=0.34,
)
def test_modes(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    seed_torch(case.seed)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    plain = oracle_for(subject, operands).y
    ratios = []
    for training in (True, False, True):
        with calling(f"{subject.name}.train({training})"):
            instance.module.train(training)
        y = instance.forward()
        if training:
            require(not read_mask(y, operands).all(), "nothing was dropped in training")
        else:
            ratios.append(judge(y, dataclasses.replace(plain, name="y in evaluation")))
    return worst(*ratios)


@clause(
    "LAY-STATE",
    "A state_dict loaded into another layer of the same shape makes it compute the same.",
    group="layer",
    cases=SMALL,
    weight=0.34,
)
def test_state_dict(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    blank = subject.operands(dataclasses.replace(case, seed=case.seed + 1))
    other = subject.build(blank)
    with calling("state_dict, torch.save, torch.load and load_state_dict"):
        stored = io.BytesIO()
        torch.save(instance.module.state_dict(), stored)
        stored.seek(0)
        other.module.load_state_dict(torch.load(stored, weights_only=True))
    return same_results(subject, instance, other.module, "the loaded layer")


@clause(
    "LAY-STATE-NAMES",
    "The state_dict holds weight, bias, lora_A.weight and lora_B.weight, and nothing else.",
    group="layer",
    cases=WITH_BIAS,
    level="SHOULD",
    dtypes=("float32",),
    weight=0.2,
)
def test_state_dict_names(subject: Subject, case: LinearCase) -> float | None:
    with calling("state_dict"):
        names = sorted(subject.build(subject.operands(case)).module.state_dict())
    wanted = ["bias", "lora_A.weight", "lora_B.weight", "weight"]
    require(names == wanted, f"state_dict has the keys {names}: expected {wanted}")
    return None


@clause(
    "LAY-COPY",
    "deepcopy and pickle give an equal layer that shares no memory with the first.",
    group="layer",
    cases=SMALL,
    weight=0.5,
)
def test_copies(subject: Subject, case: LinearCase) -> float | None:
    instance = subject.build(subject.operands(case))
    with calling(f"copying a {subject.name}"):
        deep = bool(case.seed % 2)
        other = copy.deepcopy(instance.module) if deep else pickle.loads(pickle.dumps(instance.module))
    ratio = same_results(subject, instance, other, "the copy")
    with torch.no_grad():
        other.lora_A.weight.add_(1)
    expected = instance.operands.placed["lora_A"].tensor
    same = torch.equal(instance.tensors["lora_A"].detach(), expected)
    require(same, "changing the copy's lora_A changed the layer's")
    return ratio


@clause(
    "LAY-TO",
    "After .to(dtype) the layer computes in that dtype.",
    group="layer",
    cases=SMALL.narrowed(values=("integers",)),
    dtypes=("bfloat16", "float16"),
    weight=0.34,
)
def test_conversion(subject: Subject, case: LinearCase) -> float | None:
    instance = subject.build(subject.operands(case))
    wide = subject.operands(dataclasses.replace(case, dtype="float64"))
    # the small integers of the 16-bit case are the same numbers in float64
    wide.values = instance.operands.values
    with calling(f"{subject.name}.to(torch.float64)"):
        module = instance.module.to(dtype_named("float64"))
    converted = Instance(module, {"x": wide.placed["x"].tensor}, wide, module=module)
    return same_results(subject, converted, module, "the converted layer")


@clause(
    "LAY-MEMORY-EFFICIENT",
    "use_memory_efficient_lora changes nothing that is computed, and backward still uses the forward's dropout mask.",
    group="layer",
    cases=SMALL.narrowed(dropout=(0.0, 0.5, 0.0, 0.25), position=("post", "pre")),
)
def test_memory_efficient(subject: Subject, case: LinearCase) -> float | None:
    if case.dropout and case.dtype in ("float64", "float32"):  # in 16 bits the relation is too loose to tell
        operands = subject.operands(dataclasses.replace(case, values="normal", training=True))
        instance = started(subject, operands, use_memory_efficient_lora=True)
        return judge_relation(instance, oracle_for(subject, operands))
    case = dataclasses.replace(case, dropout=0.0)
    operands = subject.operands(case)
    instance = subject.build(operands, use_memory_efficient_lora=True)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))


globals().update(layers.tests())
