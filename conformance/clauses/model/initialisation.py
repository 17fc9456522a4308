"""Initialisation of an adapter: the distribution of lora_A, lora_B = 0, in place, reproducible by the seed."""

from __future__ import annotations

import math
from typing import Any

import torch

from conformance.cases.case import Space
from conformance.clauses.model.target_calls import LAYER, PatchCase, patch_case
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.subject import Subject, poisoned_memory

# With 16384 elements or more, six standard errors of a variance are 7 %; K ≠ r tells the distributions apart.
LAWS = Space(PatchCase, k=(512, 256, 1024), r=(64, 128), n=(8,), training=(True, False), triton=(False, True))


@clause(
    "MOD-INIT-XAVIER",
    sentence='Method "xavier" draws lora_A from a normal distribution with mean 0 and standard deviation √(2/(K+r)).',
    cases=LAWS,
    feature="initialisation",
    dtypes=("float32", "bfloat16"),
    weight=0.5,
)
def test_xavier(subject: Subject, case: PatchCase) -> None:
    require_law(patch_case(subject, case, lora_A_init_method="xavier"), "xavier")


@clause(
    "MOD-INIT-UNIFORM",
    sentence="""Methods "uniform" and "kaiming" draw lora_A uniformly from [-1/√K, 1/√K].""",
    cases=LAWS.narrowed(how=("uniform", "kaiming")),
    feature="initialisation",
    dtypes=("float32", "bfloat16"),
    weight=0.5,
)
def test_uniform(subject: Subject, case: PatchCase) -> None:
    require_law(patch_case(subject, case, lora_A_init_method=case.how), case.how)


@clause(
    "MOD-INIT-B",
    sentence="Every initialisation method sets lora_B to zero.",
    cases=LAYER.narrowed(how=("xavier", "uniform", "kaiming")),
    feature="initialisation",
    dtypes=("float32", "bfloat16"),
    weight=0.5,
)
def test_lora_B(subject: Subject, case: PatchCase) -> None:
    with poisoned_memory():
        layer = patch_case(subject, case, lora_A_init_method=case.how)
    require_zero_B(layer)


@clause(
    "MOD-INIT-SEED",
    sentence="The seed of torch determines lora_A: equal seeds give equal adapters, and two seeds give different ones.",
    cases=LAYER.narrowed(how=("xavier", "uniform")),
    level="SHOULD",
    feature="initialisation",
    dtypes=("float32",),
    weight=0.5,
)
def test_seed(subject: Subject, case: PatchCase) -> None:
    first, again = (adapter_of(patch_case(subject, case, lora_A_init_method=case.how), "lora_A") for _ in range(2))
    require(torch.equal(first, again), f"torch.manual_seed({case.seed}) twice gave different lora_A")
    torch.manual_seed(case.seed)
    layers = [patch_case(subject, _reseeded(case, i), lora_A_init_method=case.how) for i in (1, 2)]
    require(
        not torch.equal(adapter_of(layers[0], "lora_A"), adapter_of(layers[1], "lora_A")),
        "two layers got the same random lora_A",
    )


def _reseeded(case: PatchCase, by: int) -> PatchCase:
    return PatchCase(seed=case.seed + by, k=case.k, n=case.n, r=case.r)


@clause(
    "MOD-INIT-AGAIN",
    sentence="""init_lora_weights(method) draws lora_A again and sets lora_B to zero, both in place: the Parameters
    stay the same objects and stay trainable.""",
    why="An optimiser built before the call would otherwise train Parameters that the layer no longer has.",
    cases=LAWS.narrowed(how=("xavier", "uniform")),
    feature="initialisation",
    dtypes=("float32",),
    needs=("LinearLoRA.init_lora_weights",),
    weight=0.5,
)
def test_init_again(subject: Subject, case: PatchCase) -> None:
    layer = patch_case(subject, case)
    before = adapter_of(layer, "lora_A"), adapter_of(layer, "lora_B")
    with torch.no_grad():
        drawn = before[0].clone()
        before[1].fill_(1.0)
    with calling(f"init_lora_weights({case.how!r})"):
        layer.init_lora_weights(case.how)
    for name, old in zip(("lora_A", "lora_B"), before, strict=True):
        require(
            getattr(layer, name).weight is old,
            f"init_lora_weights put a new Parameter at {name}.weight: older optimisers train the old one",
        )
        require(old.requires_grad, f"{name}.weight is frozen after init_lora_weights")
    require(
        not torch.equal(adapter_of(layer, "lora_A"), drawn),
        "init_lora_weights left lora_A as it was: expected a new draw",
    )
    require_law(layer, case.how)
    require_zero_B(layer)


def require_zero_B(layer: Any) -> None:
    """Require lora_B = 0."""
    largest = float(adapter_of(layer, "lora_B").detach().float().abs().nan_to_num(float("inf")).max())
    require(largest == 0, f"lora_B is not zero after initialisation: its largest magnitude is {largest:.3g}")


def require_law(layer: Any, method: str) -> None:
    """Require that mean, variance and fourth moment of lora_A fit the method, each within six standard errors."""
    a = adapter_of(layer, "lora_A").detach().double().cpu()
    r, k = a.shape
    bound, std = 1 / math.sqrt(k), math.sqrt(2 / (k + r))
    law, deviation, fourth = (
        (f"normal, standard deviation √(2/(K+r)) = {std:.4g}", std, 3.0)
        if method == "xavier"
        else (f"uniform in ±1/√K = ±{bound:.4g}", bound / math.sqrt(3), 1.8)
    )
    got = f'method "{method}", K={k}, r={r}: lora_A'
    mean, spread = float(a.mean()), float(a.std())
    require(abs(mean) <= 6 * deviation / math.sqrt(a.numel()), f"{got} has mean {mean:.3g}: expected 0 ({law})")
    allowed = 6 * math.sqrt((fourth - 1) / (4 * a.numel()))
    require(
        abs(spread / deviation - 1) <= allowed + 2**-9,  # bfloat16 rounds each element by up to 2⁻⁹
        f"{got} has standard deviation {spread:.4g}: expected {deviation:.4g} ({law})",
    )
    kurtosis = float(((a - mean) / spread).pow(4).mean())
    require(
        abs(kurtosis - fourth) <= 6 * math.sqrt(96 / a.numel()),
        f"{got} has fourth moment {kurtosis:.3g} σ⁴: expected {fourth:.3g} σ⁴ ({law})",
    )
    if method != "xavier":
        largest = float(a.abs().max())
        require(largest <= bound * (1 + 2**-8), f"{got} reaches {largest:.4g}: expected {law}")
