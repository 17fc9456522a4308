"""The choice of experts in a model: target_parameters, the rank for each token's experts, and what is left out."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from conformance.clauses.experts.mixture import adapters_of
from conformance.clauses.experts.mixture_case import FEW, MixtureCase
from conformance.clauses.experts.mixture_results import MODULES
from conformance.clauses.experts.small_experts import MixtureModel
from conformance.judgement.outcomes import Refused, Violation, require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

NEEDS = ("apply_lora_to_linear_modules", "PeftConfig(target_parameters)")
MODELS = FEW.narrowed(
    m=(3,), k=(4,), n=(6,), r=(2, 4), experts=(3,), slots=(2, 1), routing=("uneven",), scale=(2.0, 1.0)
)
OPTIONS: dict[str, Any] = {"cases": MODELS, "dtypes": ("float32",), "subjects": MODULES, "weight": 0.67}


def applied(subject: Subject, model: nn.Module, **options: Any) -> tuple[int, list[str]]:
    """The number of modules that the target adapts, and the texts of its warnings."""
    with warnings.catch_warnings(record=True) as caught, calling("apply_lora_to_linear_modules"):
        warnings.simplefilter("always")
        config = subject.target.PeftConfig(**options)
        count = subject.target.apply_lora_to_linear_modules(model, config)
    return count, [str(warning.message) for warning in caught]


def experts_of(model: MixtureModel) -> list[Any]:
    """The modules of experts of a model."""
    layers: Any = model.layers
    return [layer.mlp.experts for layer in layers]


def is_adapted(subject: Subject, module: Any, name: str) -> bool:
    """Whether a projection has an adapter."""
    try:
        adapters_of(subject, module, (name,))
    except (Violation, Refused):
        return False
    return True


@clause(
    "EXP-APPLY-NAMES",
    sentence="""target_parameters adapts the projections whose full dotted name, or a dotted end of it, a pattern gives,
    and no others; a module of experts counts once, and no linear module is adapted besides.""",
    needs=NEEDS,
    **OPTIONS,
)
def test_experts_chosen_by_name(subject: Subject, case: MixtureCase) -> float | None:
    model = MixtureModel(case.kind)
    first, down = model.names()
    ends = (["experts.down_proj", f"experts.{first}"], [f"layers.1.mlp.experts.{first}"], ["mlp.experts.down_proj"])
    chosen = ends[case.seed % 3]
    count, _ = applied(subject, model, target_parameters=chosen, dim=2)
    expected = 1 if case.seed % 3 == 1 else 2
    require(count == expected, f"{count} modules were adapted by target_parameters = {chosen}: expected {expected}")
    for place, module in enumerate(experts_of(model)):
        for name in (first, down):
            full = f"layers.{place}.mlp.experts.{name}"
            wanted = any(full == pattern or full.endswith(f".{pattern}") for pattern in chosen)
            found = is_adapted(subject, module, name)
            require(found is wanted, f"{full} is {'' if found else 'not '}adapted by target_parameters = {chosen}")
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and hasattr(module, "lora_A")
    ]
    require(not linear, f"{', '.join(linear)} were adapted by target_parameters = {chosen}")
    return None


@clause(
    "EXP-APPLY-FROZEN",
    sentence="""After target_parameters only adapters require grad: routers, shared experts, weights and biases are
    frozen, and all values stay.""",
    needs=NEEDS,
    **OPTIONS,
)
def test_everything_but_adapters_is_frozen(subject: Subject, case: MixtureCase) -> float | None:
    model = MixtureModel(case.kind)
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    applied(subject, model, target_parameters=[f"experts.{name}" for name in model.names()], dim=2)
    for name, (parameter, value) in before.items():
        require(not parameter.requires_grad, f"{name} requires grad after target_parameters")
        require(torch.equal(parameter, value), f"{name} has changed")
    return None


@clause(
    "EXP-APPLY-BOTH",
    sentence="target_modules and target_parameters work together: both kinds of modules are adapted and counted.",
    needs=NEEDS,
    **OPTIONS,
)
def test_linear_modules_and_experts(subject: Subject, case: MixtureCase) -> float | None:
    model = MixtureModel(case.kind)
    first, _ = model.names()
    count, _ = applied(subject, model, target_modules=["q_proj"], target_parameters=[f"experts.{first}"], dim=2)
    require(count == 4, f"{count} modules were adapted: expected 4, two q_proj and two modules of experts")
    for module in experts_of(model):
        require(is_adapted(subject, module, first), f"experts.{first} is not adapted beside q_proj")
    adapted = [name for name, module in model.named_modules() if name.endswith("q_proj") and hasattr(module, "lora_A")]
    require(len(adapted) == 2, "q_proj is not adapted beside the experts")
    return None


@clause(
    "EXP-APPLY-NONE",
    sentence="A pattern of target_parameters that matches nothing is named in a warning.",
    needs=NEEDS,
    **OPTIONS,
)
def test_a_pattern_without_a_match(subject: Subject, case: MixtureCase) -> float | None:
    model = MixtureModel(case.kind)
    chosen = [f"experts.{model.names()[0]}", "experts.no_such_proj"][case.seed % 2 :]
    _, said = applied(subject, model, target_parameters=chosen, dim=2)
    require(
        any("no_such_proj" in text for text in said), f"no warning names no_such_proj of target_parameters = {chosen}"
    )
    return None


@clause(
    "EXP-APPLY-LEFT",
    sentence="The experts that match_all_linear leaves without adapters are named in a warning.",
    level="SHOULD",
    needs=NEEDS,
    **OPTIONS,
)
def test_experts_that_are_left_out(subject: Subject, case: MixtureCase) -> float | None:
    model = MixtureModel(case.kind)
    _, said = applied(subject, model, match_all_linear=True, dim=2)
    require(any("experts" in text for text in said), "no warning names the experts that match_all_linear leaves out")
    require(
        not any(is_adapted(subject, m, model.names()[1]) for m in experts_of(model)), "match_all_linear adapts experts"
    )
    return None


@clause(
    "EXP-APPLY-RANK",
    sentence="""With moe_rank_scaling experts have the rank dim/k, with k the experts that a token chooses, and the
    scale alpha/(dim/k), or alpha/√(dim/k) with use_rslora.""",
    needs=(*NEEDS, "PeftConfig(moe_rank_scaling)"),
    **OPTIONS,
)
def test_rank_of_experts(subject: Subject, case: MixtureCase) -> float | None:
    slots, root = 2 + case.seed % 2, bool(case.seed % 3)
    model = MixtureModel(case.kind, slots=slots)
    names = model.names()
    options = {"target_parameters": [f"experts.{name}" for name in names], "moe_rank_scaling": True}
    applied(subject, model, dim=12, alpha=24, use_rslora=root, **options)
    rank = 12 // slots
    scale = 24 / rank**0.5 if root else 24 / rank
    module = experts_of(model)[0]
    x, index, p = torch.randn(4, 4), torch.tensor([[0], [1], [2], [1]]), torch.ones(4, 1)
    for name, (A, B) in adapters_of(subject, module, names).items():
        require(A.shape[1] == B.shape[2] == rank, f"the rank of {name} is {A.shape[1]}: expected 12/{slots} = {rank}")
        if name == "down_proj":
            torch.nn.init.normal_(B)
    with torch.no_grad(), calling("the forward pass"):
        found = module(x, index, p)
    A, B = (t.detach() for t in adapters_of(subject, module, names)["down_proj"])
    weight = module.down_proj.detach().mT if module.is_transposed else module.down_proj.detach()
    plain = experts_of(MixtureModel(case.kind, slots=slots))[0]
    with torch.no_grad():
        for name in names:
            getattr(plain, name).copy_(getattr(module, name))
            if module.has_bias:
                getattr(plain, f"{name}_bias").copy_(getattr(module, f"{name}_bias"))
        merged = weight + scale * B @ A
        plain.down_proj.copy_(merged.mT if module.is_transposed else merged)
        wanted = plain(x, index, p)
    error, size = float((found - wanted).abs().max()), float(wanted.abs().max())
    require(
        error <= 1e-4 * size,
        f"the output with use_rslora = {root} is off by {error:.3g}: expected the scale {scale:.4g}",
    )
    return None


@clause(
    "EXP-APPLY-REFUSED",
    sentence="""A dim that k does not divide, experts that have adapters, and DoRA for experts are refused with a
    ValueError, and the model is unchanged.""",
    needs=(*NEEDS, "PeftConfig(moe_rank_scaling)"),
    **OPTIONS,
)
def test_choices_of_experts_that_are_refused(subject: Subject, case: MixtureCase) -> float | None:
    model = MixtureModel(case.kind, slots=2)
    chosen = {"target_parameters": [f"experts.{name}" for name in model.names()]}
    wrong: dict[str, Any] = {
        "dim = 5 with k = 2": {"dim": 5, "moe_rank_scaling": True},
        "use_dora": {"dim": 4, "use_dora": True},
        "a second adapter": {"dim": 4},
    }
    what = list(wrong)[case.seed % 3]
    if what == "a second adapter":
        applied(subject, model, dim=4, **chosen)
    names, flags = [n for n, _ in model.named_parameters()], [p.requires_grad for p in model.parameters()]
    try:
        applied(subject, model, **chosen, **wrong[what])
    except Violation as outcome:
        if not isinstance(outcome.__cause__, ValueError):
            raise
        text = str(outcome.__cause__)
        require(
            not what.startswith("dim") or ("5" in text and "2" in text), f"the error names not both numbers: {text}"
        )
    except Refused:
        pass
    else:
        raise Violation(f"apply_lora_to_linear_modules returned for {what}: expected a ValueError")
    require(
        [n for n, _ in model.named_parameters()] == names, f"the model has other parameters after {what} was refused"
    )
    require(
        [p.requires_grad for p in model.parameters()] == flags, f"parameters were frozen although {what} was refused"
    )
    return None
