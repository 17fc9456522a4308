"""Results of adapted experts: the output, the gradients of tokens, router weights and adapters, whatever the layout."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.clauses.experts.mixture import Adapted, Mixture, adapted
from conformance.clauses.experts.mixture_case import FEW, MIXED, MIXTURE, ROUTINGS, MixtureCase
from conformance.clauses.experts.mixture_oracle import MixtureOracle
from conformance.judgement.judge import judge, judge_together, worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject

MODULES = ("patch_moe_module",)
COARSE = ("float32", "bfloat16")


def judged(instance: Adapted, *, gradients: bool = True) -> float | None:
    """Judge the output and every gradient of one call."""
    if not gradients:
        return judge(instance.forward(), MixtureOracle(instance.mixture).y)
    return judged_after(instance, called(instance))


def called(instance: Adapted) -> torch.Tensor:
    """The output of one call, after backward."""
    y = instance.forward()
    instance.backward(y)
    return y


def judged_after(instance: Adapted, y: torch.Tensor) -> float | None:
    """Judge the output of a call and every gradient, after backward."""
    oracle = MixtureOracle(instance.mixture)
    found = instance.gradients().items()
    # few elements of dp in 16 bits show each term; EXP-MOD-DP has the rows for that
    return judge_together([(y, oracle.y), *((tensor, oracle.gradient(name)) for name, tensor in found)])


@clause(
    "EXP-MOD-FWD",
    sentence="""An adapted module of experts gives y_t = Σ_j p_tj·f_e(x_t) with f_e = down_e(act(up_e(x))), where both
    projections are LoRA layers of the expert; the rows of B are in the order in which the weight is stored, for
    weights [E, out, in] and [E, in, out], gates that are concatenated, interleaved and clamped, and none.""",
    cases=MIXTURE,
    subjects=MODULES,
)
def test_experts_forward(subject: Subject, case: MixtureCase) -> float | None:
    return judged(adapted(subject, Mixture(case, subject.device)), gradients=False)


@clause(
    "EXP-MOD-BWD",
    sentence="""The gradients of the tokens and of each projection's A and B are those of the formula, each in the dtype
    of its operand.""",
    cases=MIXTURE,
    subjects=MODULES,
)
def test_experts_backward(subject: Subject, case: MixtureCase) -> float | None:
    instance = adapted(subject, Mixture(case, subject.device))
    called(instance)
    oracle, found = MixtureOracle(instance.mixture), instance.gradients()
    return worst(*(judge(tensor, oracle.gradient(name)) for name, tensor in found.items() if name != "p"))


@clause(
    "EXP-MOD-DP",
    sentence="The router's weights get dp_tj = g_t·f_e(x_t), the adapter included; 0 for an absent slot.",
    cases=MIXTURE.narrowed(routing=ROUTINGS, m=(48, 64)),  # in bfloat16 few elements of dp show an adapter
    subjects=MODULES,
    weight=0.75,
)
def test_gradient_of_router_weights(subject: Subject, case: MixtureCase) -> float | None:
    instance = adapted(subject, Mixture(case, subject.device))
    called(instance)
    gradient, absent = instance.p.grad, ~instance.mixture.present
    require(gradient is not None, "dp is None: expected the gradient of the router's weights")
    assert gradient is not None
    require(not numbers(gradient)[absent].any(), "dp of an absent slot is not 0")
    return judge(gradient, MixtureOracle(instance.mixture).dp)


@clause(
    "EXP-MOD-ABSENT",
    sentence="""A slot whose index is below 0 or at least E adds nothing: its p is not read, and a token without any
    expert is not read either: its y and dX are exactly 0.""",
    cases=FEW.narrowed(m=(16, 24), routing=("absent", "all-absent")),
    dtypes=COARSE,
    subjects=MODULES,
    weight=0.75,
)
def test_absent_slots(subject: Subject, case: MixtureCase) -> float | None:
    instance = adapted(subject, Mixture(case, subject.device))
    alone = ~instance.mixture.present.any(1)
    with torch.no_grad():
        instance.x[torch.from_numpy(alone)] = float("nan" if case.seed % 2 else "inf")
    y = called(instance)
    for name, tensor in (("y", y), ("dX", instance.x.grad)):
        require(tensor is not None, f"{name} is None: expected zeros for a token without experts")
        assert tensor is not None
        require(not numbers(tensor)[alone].any(), f"{name} of a token without experts is not 0")
    return judged_after(instance, y)


@clause(
    "EXP-MOD-DUPLICATE",
    sentence="""A token that chooses one expert twice gets the sum of both weights; the gradients of both slots
    count.""",
    cases=FEW.narrowed(m=(16, 24), routing=("duplicates",), slots=(2, 3)),
    dtypes=COARSE,
    subjects=MODULES,
    weight=0.5,
)
def test_an_expert_chosen_twice(subject: Subject, case: MixtureCase) -> float | None:
    return judged(adapted(subject, Mixture(case, subject.device)))


@clause(
    "EXP-MOD-IDLE",
    sentence="""Idle experts, first, in the middle and last, have gradients that are exactly 0; where no slot has an
    expert, and without tokens, y is 0 or empty, backward works, and the gradients of A and B are zero tensors.""",
    cases=FEW.narrowed(routing=("idle-first", "idle-middle", "idle-last", "all-absent", "uneven"), m=(3, 0, 5)),
    dtypes=COARSE,
    subjects=MODULES,
    weight=0.75,
)
def test_idle_experts_of_a_module(subject: Subject, case: MixtureCase) -> float | None:
    case = dataclasses.replace(case, routing="all-absent") if not case.m else case
    instance = adapted(subject, Mixture(case, subject.device))
    y = called(instance)
    idle = np.setdiff1d(np.arange(case.experts), instance.mixture.index)
    for name, tensor in instance.gradients().items():
        if "lora" in name:
            require(tensor is not None, f"the gradient of {name} is None: expected zeros for idle experts")
            assert tensor is not None
            require(not numbers(tensor)[idle].any(), f"the gradient of {name} is not 0 for an idle expert")
    return judged_after(instance, y)


@clause(
    "EXP-MOD-MIXED",
    sentence="With lora_dtype the adapters have that dtype, and y keeps the dtype of the tokens.",
    cases=MIXED,
    dtypes=COARSE,
    subjects=MODULES,
    weight=0.5,
)
def test_experts_with_mixed_dtypes(subject: Subject, case: MixtureCase) -> float | None:
    return judged(adapted(subject, Mixture(case, subject.device)))


@clause(
    "EXP-MOD-FRESH",
    sentence="A fresh adapter has B = 0 and gives the output of the module before, within the budget.",
    cases=FEW,
    dtypes=COARSE,
    subjects=MODULES,
    weight=0.5,
)
def test_fresh_experts(subject: Subject, case: MixtureCase) -> float | None:
    instance = adapted(subject, Mixture(case, subject.device), fresh=True)
    for name, (_, B) in instance.adapters().items():
        require(not bool(B.any()), f"lora_B of {name} is not 0 in a fresh adapter")
    return judge(instance.forward(), MixtureOracle(instance.mixture, instance.mixture.names).y)


@clause(
    "EXP-MOD-FRESH-BITS",
    sentence="A fresh adapter gives the output of the module before bit for bit.",
    level="SHOULD",
    # rows of whole 16 bytes: where rows begin elsewhere, torch's own product may sum in another order; and no biases,
    # which a product adds before its terms or after them
    cases=FEW.narrowed(kind=("gated", "ungated"), routing=("uneven",), k=(4, 8), n=(4, 8), sizes=("free",)),
    dtypes=("float32",),
    subjects=MODULES,
    weight=0.34,
)
def test_fresh_experts_bit_for_bit(subject: Subject, case: MixtureCase) -> float | None:
    mixture = Mixture(case, subject.device)
    index = torch.from_numpy(mixture.index.copy()).to(subject.device)
    with torch.no_grad():
        before = mixture.experts(mixture.tensor("x"), index, mixture.tensor("p"))
    y = adapted(subject, mixture, fresh=True).forward()
    require(torch.equal(y.detach(), before), "the output differs from that of the module before it was adapted")
    return None


@clause(
    "EXP-MOD-PROJECTIONS",
    sentence="With `projections` only these have an adapter; the other projection stays as it is.",
    cases=FEW,
    dtypes=COARSE,
    subjects=MODULES,
    needs=("patch_moe_module(projections)",),
    weight=0.5,
)
def test_chosen_projections(subject: Subject, case: MixtureCase) -> float | None:
    mixture = Mixture(case, subject.device)
    mixture.adapted = (mixture.names[case.seed % 2],)
    return judged(adapted(subject, mixture, projections=list(mixture.adapted)))


@clause(
    "EXP-MOD-DROP-ALL",
    sentence="With dropout 1 the module gives the values of the frozen experts in training, and dA and dB are 0.",
    cases=FEW,
    dtypes=COARSE,
    subjects=MODULES,
    needs=("patch_moe_module(dropout)",),
    weight=0.34,
)
def test_experts_without_any_update(subject: Subject, case: MixtureCase) -> float | None:
    instance = adapted(subject, Mixture(case, subject.device), dropout=1.0)
    y = called(instance)
    for name, tensor in instance.gradients().items():
        require("lora" not in name or (tensor is not None and not bool(tensor.any())), f"{name} has a gradient")
    oracle = MixtureOracle(instance.mixture, instance.mixture.names)
    return worst(judge(y, oracle.y), judge(instance.x.grad, oracle.dX))


@clause(
    "EXP-MOD-DROP-EVAL",
    sentence="Dropout does nothing in eval mode.",
    cases=FEW,
    dtypes=COARSE,
    subjects=MODULES,
    needs=("patch_moe_module(dropout)",),
    weight=0.34,
)
def test_experts_in_evaluation(subject: Subject, case: MixtureCase) -> float | None:
    instance = adapted(subject, Mixture(case, subject.device), dropout=0.5)
    instance.module.eval()
    return judged(instance)
