"""Training a DoRA layer: layouts, dtypes, subsets, repeated and checkpointed passes, autocast, options."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from conformance.cases.linear_case import LinearCase
from conformance.clauses.dora.oracle import DORA, NAMES, built
from conformance.clauses.dora.side_effects import PLACED
from conformance.clauses.linear_and_layer.case_spaces import partnered
from conformance.judgement.judge import compare, judge, worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject


@clause(
    "DORA-LAYOUT",
    sentence="Neither y nor any gradient depends on the strides of x, g and W.",
    cases=PLACED,
    weight=0.5,
)
def test_layouts(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, case)
    return oracle.judged_step(instance)


@clause(
    "DORA-MIXED",
    sentence="""With an adapter of a wider dtype, y and dX have the layer's dtype, and dA, dB and dm have the
    adapter's dtype.""",
    feature="adapter_dtype",
    cases=DORA,
    dtypes=("bfloat16", "float16"),
    weight=0.5,
)
def test_adapter_of_another_dtype(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, partnered(case))
    return oracle.judged_step(instance)


@clause(
    "DORA-NEEDS",
    sentence="""Any subset of x, A, B and the magnitude may require grad: its members get their gradients, and the
    others get none.""",
    cases=DORA,
)
def test_subsets(subject: Subject, case: LinearCase) -> float | None:
    chosen = 1 + case.seed % (2 ** len(NAMES) - 2)  # a proper, non-empty subset
    needs = tuple(name for i, name in enumerate(NAMES) if chosen >> i & 1)
    instance, oracle = built(subject, case)
    ratio = oracle.judged_step(instance, needs)
    for name in NAMES:
        if name not in needs:
            require(instance.gradient(name) is None, f"{name} got a gradient although it does not require one")
    return ratio


@clause(
    "DORA-BIAS",
    sentence="""A bias made trainable by requires_grad_(True) gets the gradient Σ g over all tokens, or Σ m′ ⊙ g
    where the magnitude scales the bias.""",
    feature="dora_bias",
    cases=DORA.narrowed(bias=(True,)),
    weight=0.34,
)
def test_trainable_bias(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, case)
    instance.require_grad((*NAMES, "bias"))
    instance.backward(instance.forward())
    gradient = instance.gradient("bias")
    require(gradient is not None, "the bias requires grad and got none")
    return judge(gradient, oracle.bias_gradient())


@clause(
    "DORA-TWICE",
    sentence="Two backward passes over a retained graph add up to twice each gradient.",
    cases=DORA,
    weight=0.34,
)
def test_backward_twice(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, case)
    instance.require_grad(NAMES)
    y = instance.forward()
    instance.backward(y, retain_graph=True)
    instance.backward(y)
    ratios = []
    for name in NAMES:
        once = oracle.gradient(name)
        assert once.budget is not None
        store = 2 * max(oracle.how.unit, oracle.how.adapter_unit) * np.abs(once.value)
        terms = {term: 2 * part for term, part in once.terms.items()}
        both = dataclasses.replace(once, value=2 * once.value, budget=2 * once.budget + store, terms=terms)
        ratios.append(judge(instance.gradient(name), dataclasses.replace(both, name=f"twice {once.name}")))
    return worst(*ratios)


@clause(
    "DORA-CKPT",
    sentence="Under gradient checkpointing, y and the gradients are the same.",
    cases=DORA.narrowed(training=(True,)),
    weight=0.25,
)
def test_checkpointed(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, case)
    plain = instance.call
    instance.call = lambda x: checkpoint(plain, x, use_reentrant=False)
    return oracle.judged_step(instance)


@clause(
    "DORA-AMP",
    sentence="""Under autocast, y is right in autocast's dtype, in the layer's or in float32, and each gradient is right
    in the dtype of its operand.""",
    cases=DORA.narrowed(autocast=("bfloat16",), training=(True,)),
    dtypes=("float32", "bfloat16", "float16"),
    feature="autocast",
)
def test_autocast(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, case)
    dX = oracle.gradient("x")
    if case.dtype != "float32" and case.seed % 2:  # a layer in 16 bits, and an x in float32
        instance.tensors["x"] = instance.tensors["x"].float()
        dX = dataclasses.replace(dX, dtype=torch.float32)
    instance.require_grad(NAMES)
    with torch.autocast(subject.device.partition(":")[0], dtype=oracle.operands.computed_in):
        y = instance.forward()
    # the clause does not decide in which dtype the product with m′ is
    allowed = (oracle.operands.computed_in, oracle.operands.dtype, torch.float32)
    require(y.dtype in allowed, f"y has dtype {y.dtype} under autocast")
    instance.backward(y)
    ratio = judge(y, dataclasses.replace(oracle.y(), dtype=y.dtype))
    others = (judge(instance.gradient(name), oracle.gradient(name)) for name in NAMES if name != "x")
    return worst(ratio, judge(instance.gradient("x"), dX), *others)


@clause(
    "DORA-OPTIONS",
    sentence="use_rslora and use_memory_efficient_lora mean the same for a DoRA layer as for any other LoRA layer.",
    cases=DORA.narrowed(r=(3, 4, 17)),
    weight=0.5,
)
def test_options(subject: Subject, case: LinearCase) -> float | None:
    rslora = case.seed % 3 > 0 and subject.takes("use_rslora")
    efficient = case.seed % 3 != 1 and subject.takes("use_memory_efficient_lora")
    alpha = (16, 3)[case.seed % 2]
    scale = alpha / (math.sqrt(case.r) if rslora else case.r)
    instance, oracle = built(
        subject,
        dataclasses.replace(case, scale=scale),
        alpha=alpha,
        use_rslora=rslora,
        use_memory_efficient_lora=efficient,
    )
    return oracle.judged_step(instance)


@clause(
    "DORA-NONFINITE",
    sentence="""A NaN or infinity in one row of x makes every element of that row of y non-finite, and changes no
    other row.""",
    cases=DORA.narrowed(m=(2, 3, 17)),
    dtypes=("float64", "float32"),
    weight=0.34,
)
def test_nonfinite(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, case)
    expected = oracle.y()
    row = case.seed % case.m
    with torch.no_grad():
        instance.tensors["x"][row, case.seed % case.k] = math.nan if case.seed % 2 else math.inf
        seen = numbers(instance.forward())
    others = np.arange(case.m) != row
    require(not np.isfinite(seen[row]).any(), f"y[{row}] has finite elements although x[{row}] is not finite")
    assert expected.budget is not None
    rest = dataclasses.replace(expected, value=expected.value[others], budget=expected.budget[others], terms={})
    return compare(seen[others], rest)
