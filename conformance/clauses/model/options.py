"""Every option of a config reaches every layer that the config chooses."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from conformance.cases.case import Space
from conformance.clauses.model.apply_to_model import CHOSEN, MODELS, ModelCase, named, require_only_adapters_train
from conformance.clauses.model.dropout import PROBE, fill_probe, placed, require_position, require_rate
from conformance.clauses.model.initialisation import require_law
from conformance.clauses.model.target_calls import PatchCase, apply, require_adapter
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.specification.features import ABSENT
from conformance.target.adapter_tensors import adapter_of, held_magnitude
from conformance.target.calls import calling
from conformance.target.subject import Subject

OPTIONS: dict[str, dict[str, Any]] = {
    "alpha": {"alpha": 6.47},
    "lora_dtype": {"lora_dtype": torch.bfloat16},
    "lora_dtype as string": {"lora_dtype": "torch.float64"},
    "uniform": {"lora_A_init": "uniform"},
    "xavier": {"lora_A_init": "xavier"},
}


@clause(
    "MOD-OPTIONS",
    sentence="The config's dim, alpha, lora_A_init and lora_dtype reach every chosen layer.",
    cases=Space(PatchCase, r=(3, 1, 5), how=tuple(OPTIONS), triton=(False, True)),
    dtypes=("float32",),
)
def test_options(subject: Subject, case: PatchCase) -> None:
    torch.manual_seed(case.seed)
    if case.how in ("uniform", "xavier") and subject.follows("initialisation", ABSENT):
        case = dataclasses.replace(case, how="alpha")
    if case.how.startswith("lora_dtype") and subject.lacks("adapter_dtype"):
        case = dataclasses.replace(case, how="alpha")
    dim = 64 if case.how in ("uniform", "xavier") else case.r
    model = nn.Sequential(nn.Linear(256, 4), nn.Linear(256, 4)).to(subject.device)
    apply(subject, model, match_all_linear=True, dim=dim, use_triton=case.triton, **OPTIONS[case.how])
    wanted = {"lora_dtype": torch.bfloat16, "lora_dtype as string": torch.float64}.get(case.how, torch.float32)
    for layer in model:
        got = adapter_of(require_adapter(layer, "a chosen layer"), "lora_A")
        require(list(got.shape) == [dim, 256], f"dim={dim} gave lora_A {list(got.shape)}: expected {[dim, 256]}")
        require(got.dtype == wanted, f"{OPTIONS[case.how]} gave lora_A of {got.dtype}: expected {wanted}")
        if case.how in ("uniform", "xavier"):
            require_law(layer, case.how)
        _require_scale(layer, OPTIONS[case.how].get("alpha", 32) / dim)


def _require_scale(layer: Any, scale: float) -> None:
    with torch.no_grad():
        adapter_of(layer, "lora_A").fill_(1 / 256)
        adapter_of(layer, "lora_B").fill_(1.0)
        ones = torch.ones(1, 256, device=layer.weight.device)
        with calling("the forward pass"):
            y = layer(ones)
        update = y - nn.functional.linear(ones, layer.weight, layer.bias)
    got = float(update.mean()) / adapter_of(layer, "lora_A").shape[0]
    require(
        abs(got - scale) <= 1e-4 * max(scale, 1),
        f"the layer's scale is {got:.4g}: alpha/dim of the config is {scale:.4g}",
    )


@clause(
    "MOD-OPTION-DROPOUT",
    sentence="The config's dropout and dropout_position reach every chosen layer.",
    cases=PROBE.narrowed(how=("rate", "position")),
    feature="dropout",
    dtypes=("float32",),
)
def test_option_dropout(subject: Subject, case: PatchCase) -> None:
    case, width = placed(subject, case), 64 if case.how == "rate" else 1
    model = nn.Sequential(nn.Linear(width, 64, bias=False)).to(subject.device)
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]
    options = {"dropout": case.dropout, "dropout_position": case.position, "use_triton": case.triton}
    apply(subject, model, match_all_linear=True, dim=width, alpha=2 * width, **options)
    fill_probe(require_adapter(model[0], "the chosen layer"))
    model.train()
    (require_rate if case.how == "rate" else require_position)(model[0], case)


@clause(
    "MOD-OPTION-RSLORA",
    sentence="The config's use_rslora reaches every chosen layer: the scale of each is alpha/√dim.",
    cases=Space(PatchCase, r=(4, 9, 16), triton=(False, True)),
    dtypes=("float32",),
    needs=("patch_linear_module(use_rslora)",),
    weight=0.5,
)
def test_option_rslora(subject: Subject, case: PatchCase) -> None:
    model = nn.Sequential(nn.Linear(256, 4)).to(subject.device)
    apply(subject, model, match_all_linear=True, dim=case.r, alpha=6, use_rslora=True, use_triton=case.triton)
    _require_scale(require_adapter(model[0], "the chosen layer"), 6 / case.r**0.5)


@clause(
    "MOD-OPTION-DORA",
    sentence="""The config's use_dora reaches every chosen layer: each has a lora_magnitude, which is trainable like
    the adapter.""",
    cases=MODELS,
    dtypes=("float32",),
    needs=("patch_linear_module(use_dora)",),
    weight=0.25,
)
def test_option_dora(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    apply(subject, model, **case.options, use_dora=True)
    for name in CHOSEN[case.targets]:
        magnitude = held_magnitude(model.get_submodule(name))
        require(magnitude is not None, f"use_dora=True and {named(case)}: {name} has no lora_magnitude")
    require_only_adapters_train(model, f"after use_dora=True and {named(case)}")
