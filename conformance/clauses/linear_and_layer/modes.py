"""PyTorch's modes: autocast, gradient checkpointing, torch.compile."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for, under_autocast
from conformance.clauses.linear_and_layer.side_effects import refilled
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Instance, Subject

# no integers: those of two draws together may be no exact ones
COMPILED = SMALL.narrowed(
    training=(True,),
    m=(3, 17),
    k=(17, 33),
    n=(5, 17),
    r=(3,),
    scale=(2.0, 4.0),
    values=("normal", "positive"),
    sizes=("free", "k=n"),
)

BEFORE = "had the values from before the change (autocast's cache of casts)"


@clause(
    "LIN-AMP",
    "LAY-AMP",
    sentence="""Under autocast the layer behaves like the same formula written with F.linear, whatever the dtypes of x
    and of the layer; backward runs outside the autocast region.""",
    why="A layer in 16 bits often meets an x in float32, from a norm, and an adapter in float32.",
    cases=SMALL.narrowed(autocast=("bfloat16",), training=(True,)),
    dtypes=("float32", "bfloat16", "float16"),
    feature="autocast",
    weight=0.5,
)
def test_autocast(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    oracle = oracle_for(subject, operands)
    dX = oracle.dX
    if case.dtype != "float32" and case.seed % 2:
        instance.tensors["x"] = instance.tensors["x"].float()
        dX = dataclasses.replace(dX, dtype=torch.float32)
    instance.require_grad(TRAINABLE)
    with torch.autocast(subject.device.partition(":")[0], dtype=operands.computed_in):
        y = instance.forward()
    instance.backward(y)
    gradients = worst(judge(instance.gradient("x"), dX), judge_gradients(instance, oracle, ("lora_A", "lora_B")))
    if not subject.has_base:  # the output dtype of the bare update is an argument
        return gradients
    return worst(judge(y, under_autocast(subject, oracle.y, instance, y)), gradients)


@clause(
    "LAY-AMP-CHANGED",
    sentence="""When lora_A and lora_B change in place inside an autocast region, the next call in it uses their new
    values, and its gradients are right; a layer that keeps what autocast has cast uses all old values.""",
    why="""Autocast casts a trainable parameter once for a region, so that plain PyTorch computes with the adapter from
    before an optimiser's step in the region. A mixture of old and new values belongs to no adapter.""",
    cases=SMALL.narrowed(autocast=("bfloat16",), training=(True,), values=("normal", "positive")),
    level="SHOULD",  # F.linear itself goes on using what autocast has cast
    dtypes=("float32",),
    feature="autocast",
    weight=0.34,
)
def test_changed_within_autocast(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    new = refilled(subject, operands, case.seed + 1, ("lora_A", "lora_B"))
    instance.require_grad(TRAINABLE)
    with torch.autocast(subject.device.partition(":")[0], dtype=operands.computed_in):
        instance.forward()
        with torch.no_grad():
            for name in ("lora_A", "lora_B"):
                instance.tensors[name].copy_(new.placed[name].tensor)
        y = instance.forward()
    instance.backward(y)
    oracle, stale = oracle_for(subject, new), oracle_for(subject, operands)
    if subject.follows("autocast_updates", "old values"):
        expected = under_autocast(subject, stale.y, instance, y)
        return worst(judge(y, expected), judge_gradients(instance, stale))
    mistakes = {f"lora_A and lora_B {BEFORE}": stale.y.value}
    for kept, changed in (("lora_A", "lora_B"), ("lora_B", "lora_A")):
        mixed = oracle_for(subject, refilled(subject, operands, case.seed + 1, (changed,)))
        mistakes[f"{kept} {BEFORE}"] = mixed.y.value
    expected = dataclasses.replace(oracle.y, mistakes=mistakes)
    expected = under_autocast(subject, expected, instance, y)
    return worst(judge(y, expected), judge_gradients(instance, oracle))


@clause(
    "LIN-CKPT",
    "LAY-CKPT",
    sentence="Under gradient checkpointing, y and the gradients are the same.",
    cases=SMALL.narrowed(training=(True,)),
    weight=0.25,
)
def test_checkpointed(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    plain = instance.call
    instance.call = lambda x: checkpoint(plain, x, use_reentrant=False)
    y = instance.forward()
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))


@clause(
    "LIN-COMPILE",
    "LAY-COMPILE",
    sentence="""Under torch.compile, y and the gradients are the same; also after lora_A and lora_B got new values in
    place or were frozen, and after the scale, W or the Parameters of the adapter were exchanged for others.""",
    cases=COMPILED,
    dtypes=("float32", "bfloat16"),  # the traced graph depends on the dtype only by its being a 16-bit one
    weight=0.05,
)
def test_compiled(subject: Subject, case: LinearCase) -> float | None:
    torch.compiler.reset()
    operands = subject.operands(case)
    instance = subject.build(operands)
    # aot_eager captures and partitions the graphs as every backend does, without generating code
    instance.call = torch.compile(instance.call, backend="aot_eager")
    ratios = [_compiled_step(subject, instance, operands, "")]
    new = refilled(subject, operands, case.seed + 1, ("lora_A", "lora_B"))
    with torch.no_grad():
        for name in ("lora_A", "lora_B"):
            instance.tensors[name].copy_(new.placed[name].tensor)
    ratios.append(_compiled_step(subject, instance, new, " after new values", ("x", "lora_B")))
    if subject.is_layer:
        ratios.append(_compiled_step(subject, instance, _exchanged(subject, instance, new), " after an exchange"))
    return worst(*ratios)


def _compiled_step(
    subject: Subject, instance: Instance, operands: Operands, when: str, needs: tuple[str, ...] = TRAINABLE
) -> float | None:
    """Judge a call of the compiled layer in which these operands require grad; the other tensors get no gradient."""
    instance.operands = operands
    for tensor in instance.tensors.values():
        tensor.grad = None
    instance.require_grad(needs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's warnings do not concern results
        y = instance.forward()
        instance.backward(y)
    oracle = oracle_for(subject, operands)
    for name in TRAINABLE:
        require(name in needs or instance.gradient(name) is None, f"{name} is frozen{when} and got a gradient")
    expected = dataclasses.replace(oracle.y, name=f"y{when}")
    return worst(judge(y, expected), judge_gradients(instance, oracle, needs))


def _exchanged(subject: Subject, instance: Instance, old: Operands) -> Operands:
    """Give a layer another scale, and other Parameters for W, lora_A and lora_B, as far as it lets them be set."""
    layer, scale = instance.module, vars(instance.module).get("scale")
    owners = {"weight": layer, "lora_A": getattr(layer, "lora_A", None), "lora_B": getattr(layer, "lora_B", None)}
    names = [name for name, tensor in instance.tensors.items() if _holds(owners.get(name), tensor)]
    new = refilled(subject, old, old.case.seed + 2, names)
    for name in names:
        values = new.placed[name].tensor.detach()
        owners[name].weight = instance.tensors[name] = nn.Parameter(values, requires_grad=name != "weight")
    if isinstance(scale, float | int):
        layer.scale = scale * 2
        new.scale = old.scale * 2
    return new


def _holds(owner: Any, tensor: torch.Tensor) -> bool:
    return isinstance(owner, nn.Module) and owner._parameters.get("weight") is tensor
