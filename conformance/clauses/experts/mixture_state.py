"""What adapting experts keeps and adds: names, modes, frozen weights, initialisation, scale; merging."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch

from conformance.clauses.experts.mixture import Mixture, adapted, adapters_of, patched
from conformance.clauses.experts.mixture_case import FEW, MixtureCase
from conformance.clauses.experts.mixture_oracle import MixtureOracle
from conformance.clauses.experts.mixture_results import COARSE, MODULES, judged
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics import budget
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

ONE = ("float32",)
WIDE = FEW.narrowed(k=(48,), n=(24,), r=(16,), experts=(8,))


@clause(
    "EXP-MOD-KEPT",
    sentence="""Adapting is in place: the same object, the names, values and dtypes of its parameters, its training
    flag, hooks and attributes stay, and its class stays an instance of the class before.""",
    cases=FEW,
    dtypes=COARSE,
    subjects=MODULES,
    weight=0.5,
)
def test_adapting_experts_keeps(subject: Subject, case: MixtureCase) -> float | None:
    mixture = Mixture(case, subject.device)
    module, seen = mixture.experts.train(bool(case.seed % 2)), []
    module.register_forward_hook(lambda *_: seen.append(1))
    kind = type(module)
    before = {name: (p, p.detach().clone()) for name, p in module.named_parameters()}
    attributes = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    result = adapted(subject, mixture, fresh=True).module
    require(result is module, "patch_moe_module returned another object: expected the module itself")
    require(isinstance(result, kind), f"the module is no longer a {kind.__name__}")
    now = dict(result.named_parameters())
    for name, (parameter, value) in before.items():
        require(now.get(name) is parameter, f"{name} is no longer the same Parameter under the same name")
        require(torch.equal(parameter.detach(), value), f"the values of {name} have changed")
    for key, value in attributes.items():
        if key != "training":
            require(getattr(result, key, None) is value, f"the attribute {key} is no longer the module's own")
    require(result.training is bool(case.seed % 2), f"the training flag is {result.training} after adapting")
    adapted_now = adapters_of(subject, result, mixture.names)
    require(all(A.dtype == mixture.dtype for A, _ in adapted_now.values()), "the adapters have another dtype")
    index = torch.from_numpy(mixture.index.copy()).to(subject.device)
    with torch.no_grad(), calling("the forward pass"):
        result(mixture.tensor("x"), index, mixture.tensor("p"))
    require(len(seen) == 1, f"the forward hook ran {len(seen)} times in one call: expected once")
    return None


@clause(
    "EXP-MOD-FROZEN",
    sentence="Only the adapters require grad: weights, biases and whatever else the module holds are frozen.",
    cases=FEW,
    dtypes=ONE,
    subjects=MODULES,
    weight=0.5,
)
def test_experts_are_frozen(subject: Subject, case: MixtureCase) -> float | None:
    mixture = Mixture(case, subject.device)
    names = {name for name, _ in mixture.experts.named_parameters()}
    instance = adapted(subject, mixture)
    instance.backward(instance.forward())
    for name, parameter in instance.module.named_parameters():
        if name in names:
            frozen = not parameter.requires_grad and parameter.grad is None
            require(frozen, f"{name} requires grad or has a gradient: expected a frozen parameter")
    for name, pair in instance.adapters().items():
        require(all(t.requires_grad or not t.is_leaf for t in pair), f"the adapter of {name} does not require grad")
    return None


@clause(
    "EXP-MOD-INIT",
    sentence="""Each expert's A is drawn as a linear layer's A [r, K] of its own: `xavier` with the standard deviation
    √(2/(r + K)), `uniform` and `kaiming` within ±√(1/K); no two experts have the same A.""",
    feature="initialisation",
    cases=WIDE,
    dtypes=ONE,
    subjects=MODULES,
    weight=0.75,
)
def test_initialisation_of_experts(subject: Subject, case: MixtureCase) -> float | None:
    method = ("xavier", "uniform", "kaiming")[case.seed % 3]
    module = patched(subject, mixture := Mixture(case, subject.device), lora_A_init_method=method)
    for name, (A, _) in adapters_of(subject, module, mixture.names).items():
        _, r, k = A.shape
        expected = math.sqrt(2 / (r + k)) if method == "xavier" else math.sqrt(1 / (3 * k))
        seen = float(A.detach().float().std())
        # the deviation of thousands of numbers is within a few percent of its expectation
        require(
            abs(seen / expected - 1) < 0.15,
            f"lora_A of {name} has the standard deviation {seen:.3g} by {method}: expected {expected:.3g}, that of a "
            f"linear layer [{r}, {k}]",
        )
        largest = float(A.detach().abs().max())
        bound = math.sqrt(1 / k) * 1.001
        require(
            method == "xavier" or largest <= bound,
            f"lora_A of {name} holds {largest:.3g}: expected at most {bound:.3g}",
        )
        flat = A.detach().reshape(len(A), -1)
        require(len(torch.unique(flat, dim=0)) == len(A), f"two experts have the same lora_A of {name}")
        own = flat.float().std(1) / expected
        require(
            bool(((own > 0.75) & (own < 1.25)).all()),
            f"the experts' lora_A of {name} have deviations from {float(own.min()):.2g} to {float(own.max()):.2g} "
            f"times the expected one: expected each of them drawn alike",
        )
    return None


@clause(
    "EXP-MOD-RSLORA",
    sentence="With use_rslora the scale is alpha/√dim.",
    cases=FEW.narrowed(r=(4, 3)),
    dtypes=COARSE,
    subjects=MODULES,
    needs=("patch_moe_module(use_rslora)",),
    weight=0.34,
)
def test_scale_of_experts_with_rslora(subject: Subject, case: MixtureCase) -> float | None:
    mixture = Mixture(case, subject.device)
    instance = adapted(subject, mixture, use_rslora=True)
    root = math.sqrt(case.r)
    for name in mixture.names:  # the oracle's scale is alpha/dim: the root goes into its B
        mixture.values[f"{name}.lora_B"] = mixture.values[f"{name}.lora_B"] * root
    return judge(instance.forward(), MixtureOracle(mixture).y)


@clause(
    "EXP-MOD-MERGE",
    sentence="""merge() adds s·B_e A_e to each expert's weight, as it is stored, in every projection; the output stays,
    a second merge changes nothing, and `merged` says so.""",
    cases=FEW,
    dtypes=COARSE,
    subjects=MODULES,
    needs=("GroupedExpertsLoRA.merge", "GroupedExpertsLoRA.unmerge"),
    weight=0.75,
)
def test_merged_experts(subject: Subject, case: MixtureCase) -> float | None:
    mixture = Mixture(case, subject.device)
    instance, ratios = adapted(subject, mixture), []
    with calling("merge()"):
        instance.module.merge()
        instance.module.merge()
    require(getattr(instance.module, "merged", True) is True, "`merged` is not True after merge()")
    for name in mixture.names:
        stored = getattr(instance.module, name).detach()
        weight, A, B = (mixture.values[f"{name}.{part}"] for part in ("weight", "lora_A", "lora_B"))
        of_experts = zip(weight, A, B, strict=True)
        limits = np.stack([budget.merged_weight(w, a, b, case.scale, mixture.rounding) for w, a, b in of_experts])
        terms = {"adapter": case.scale * B @ A, "base": weight}
        expected = Expected(f"merged {name}", terms["adapter"] + weight, limits, mixture.dtype, terms)
        ratios.append(judge(stored.mT if mixture.experts.is_transposed else stored, expected))
    with torch.no_grad():
        ratios.append(judge(instance.forward(), MixtureOracle(mixture).y))
    return worst(*ratios)


@clause(
    "EXP-MOD-UNMERGE",
    sentence="""unmerge() restores every weight within 2u·(|W| + |ΔW|) and the state_dict of a merged module is that of
    the unmerged one; training can go on.""",
    cases=FEW,
    dtypes=COARSE,
    subjects=MODULES,
    needs=("GroupedExpertsLoRA.merge", "GroupedExpertsLoRA.unmerge"),
    weight=0.5,
)
def test_unmerged_experts(subject: Subject, case: MixtureCase) -> float | None:
    mixture = Mixture(case, subject.device)
    instance = adapted(subject, mixture)
    before = copy.deepcopy(instance.module.state_dict())
    with calling("merge()"):
        instance.module.merge()
    for name, tensor in instance.module.state_dict().items():
        require(
            name in before and torch.equal(tensor, before[name]), f"{name} of the state_dict of a merged module differs"
        )
    with calling("unmerge()"):
        instance.module.unmerge()
    for name in mixture.names:
        update = case.scale * mixture.values[f"{name}.lora_B"] @ mixture.values[f"{name}.lora_A"]
        weight = mixture.values[f"{name}.weight"]
        how = mixture.rounding
        limits = budget.unmerged_weight(weight, update, case.scale, how.dtype, how.adapter_dtype)
        stored = getattr(instance.module, name).detach()
        expected = Expected(f"unmerged {name}", weight, limits, mixture.dtype, certified=False)
        judge(stored.mT if mixture.experts.is_transposed else stored, expected)
    return judged(instance)


@clause(
    "EXP-MOD-COPY",
    sentence="""A deep copy and a module that loads the state_dict give the same output, and do not share adapters with
    the original.""",
    cases=FEW,
    dtypes=ONE,
    subjects=MODULES,
    weight=0.34,
)
def test_copied_experts(subject: Subject, case: MixtureCase) -> float | None:
    mixture = Mixture(case, subject.device)
    instance = adapted(subject, mixture)
    state = copy.deepcopy(instance.module.state_dict())
    with calling("copy.deepcopy of the module"):
        copied = copy.deepcopy(instance.module)
    other = adapted(subject, Mixture(case, subject.device), fresh=True)
    with calling("load_state_dict"):
        other.module.load_state_dict(state)
    with torch.no_grad():
        for _, B in instance.adapters().values():
            B.mul_(-3.0)
    instance.module = copied
    return worst(judged(instance), judged(other))
