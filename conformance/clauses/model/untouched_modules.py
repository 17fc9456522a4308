"""`apply_lora_to_linear_modules` leaves unchanged: other modules, modules with similar names, a refused model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from conformance.clauses.model.apply_to_model import CHOSEN, MODELS, ModelCase, named
from conformance.clauses.model.small_models import Toy, adapted
from conformance.clauses.model.target_calls import apply, in_its_rule, make_config
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

KEPT = MODELS.narrowed(frozen=(False,))


@clause(
    "MOD-LEAVES-REST",
    sentence="""apply_lora_to_linear_modules changes nothing of a model except that it adds adapters: every module
    object stays under its name with its hooks and its training flag, every state_dict entry keeps its dtype and
    value, and the model computes what it computed before, in the same dtype.""",
    cases=KEPT,
    dtypes=("float32", "bfloat16"),
    feature="in_place",
    weight=0.5,
)
def test_leaves_the_rest(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject).to(getattr(torch, case.dtype))
    # the norm stays float32 in a bfloat16 model, as is usual
    model.norm, model.drop = nn.LayerNorm(2).to(subject.device), nn.Dropout(0.5)
    model.blocks[1].train(not case.training)
    ran: list[str] = []
    for name in ("blocks.0.fc2", "embed"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    modules = dict(model.named_modules())
    flags = {name: module.training for name, module in modules.items()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = torch.tensor([[1, 2, 3]], device=subject.device)
    y = model(tokens)
    apply(subject, model, **case.options)
    said = f"applying {named(case)}"
    for name, module in modules.items():
        now: Any = dict(model.named_modules()).get(name)
        require(now is module, f"{said} put another object in the place of {name}")
        require(now.training == flags[name], f"{said} set the training flag of {name} to {now.training}")
    require(model.drop.p == 0.5, f"{said} changed the rate of a dropout module of the model")
    state = model.state_dict()
    for name, value in values.items():
        require(name in state, f"{said} took {name} out of the state_dict")
        got = state[name]
        same = got.dtype == value.dtype and torch.equal(got, value)
        require(same, f"{said} changed {name}: it is {got.dtype}, expected {value.dtype} and equal values")
    ran.clear()
    with calling("the forward pass of the patched model"):
        after = model(tokens)
    require(sorted(ran) == ["blocks.0.fc2", "embed"], f"{said}: of the hooks on blocks.0.fc2 and embed, {ran} ran")
    require(after.dtype == y.dtype, f"{said}: the output is {after.dtype}, of {y.dtype} before")


@clause(
    "MOD-LOOKALIKE",
    sentence="""A name that merely contains `lora` has no special meaning. Layers called explorator, or under a parent
    called lora_model, are chosen like any other layer. A parameter that is not an adapter's is frozen, whatever its
    name or number of dimensions.""",
    why="Code that looks for `lora_` in names freezes or trains the wrong parameters.",
    cases=MODELS.narrowed(targets=("",)),
    dtypes=("float32",),
    weight=0.5,
)
def test_lookalikes(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    model.explorator = nn.Linear(3, 2).to(subject.device)
    model.lora_model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)).to(subject.device)
    model.lora_gate = nn.Parameter(torch.ones(2, device=subject.device))
    model.logit_scale = nn.Parameter(torch.ones((), device=subject.device))
    model.flora = nn.Embedding(2, 2).to(subject.device)
    count = apply(subject, model, target_modules=["explorator", "lora_model.*", "fc1"], dim=case.dim)
    expected = ["blocks.0.fc1", "blocks.1.fc1", "explorator", "lora_model.0"]
    require(adapted(model) == expected, f"explorator, lora_model.* and fc1 chose {adapted(model)}: expected {expected}")
    require(count == len(expected), f"explorator, lora_model.* and fc1 returned {count!r}: expected {len(expected)}")
    parts = {id(p) for name in expected for p in _adapter_of(model.get_submodule(name))}
    for name, parameter in model.named_parameters():
        trained = id(parameter) in parts
        state = "trainable" if parameter.requires_grad else "frozen"
        require(parameter.requires_grad == trained, f"{name} is {state}: expected the opposite")


def _adapter_of(layer: Any) -> tuple[Any, Any]:
    return adapter_of(layer, "lora_A"), adapter_of(layer, "lora_B")


@clause(
    "MOD-REFUSED-MODEL",
    sentence="""If one chosen layer already has an adapter, the whole model is refused: no other layer gets an adapter
    and no parameter is frozen.""",
    cases=KEPT.narrowed(targets=("", "*", "fc1", "head,blocks.0.fc2")),
    level="SHOULD",
    dtypes=("float32",),
    weight=0.5,
)
def test_refused_model(subject: Subject, case: ModelCase) -> None:
    model: Toy = case.toy(subject)
    last = sorted(CHOSEN[case.targets])[-1]  # a late layer: head, or one in the second block
    apply(subject, model, target_modules=[f"{last}"], dim=case.dim)
    model.requires_grad_(True)
    config = make_config(subject, **in_its_rule(subject, model, case.options))
    before = adapted(model)
    what = f"apply_lora_to_linear_modules with {named(case)} to a model whose {last} has an adapter"
    refuses(what, lambda: subject.thing(model, config), types=(ValueError, TypeError))
    require(adapted(model) == before, f"{what} patched {sorted(set(adapted(model)) - set(before))} and then raised")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    require(not frozen, f"{what} froze {', '.join(frozen[:3])} and then raised")
