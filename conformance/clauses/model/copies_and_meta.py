"""Patched layers on the meta device, copied, pickled, saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import nn

from conformance.cases.seeding import seed_torch
from conformance.clauses.model.initialisation import LAWS, require_law, require_zero_B
from conformance.clauses.model.small_models import TOY_LINEARS, TaggedLinear, Toy, adapted, adapters
from conformance.clauses.model.target_calls import LAYER, PATCH, PatchCase, apply, patch, patch_case, patched
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import LinearOracle
from conformance.judgement.outcomes import require
from conformance.numerics.formats import dtype_named
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.subject import Instance, Subject, poisoned_memory

WAYS = ("deepcopy", "pickle", "torch.save", "state_dict")


@clause(
    "MOD-META",
    sentence="""Patching a layer on the meta device adds lora_A and lora_B as meta tensors of the right shapes and
    dtype.""",
    why="Large models are built on meta, so an adapter that allocates memory there defeats the purpose.",
    cases=LAYER,
    weight=0.5,
)
def test_meta(subject: Subject, case: PatchCase) -> None:
    layer = _meta_layer(subject, case)
    for name, parameter in layer.named_parameters():
        require(parameter.is_meta, f"{name} is on {parameter.device} after patching a meta layer: expected meta")
    shapes = [list(adapter_of(layer, "lora_A").shape), list(adapter_of(layer, "lora_B").shape)]
    expected = [[case.r, case.k], [case.n, case.r]]
    require(shapes == expected, f"lora_A and lora_B of a meta layer are {shapes}: expected {expected}")
    dtype = adapter_of(layer, "lora_A").dtype
    require(dtype == layer.weight.dtype, f"lora_A is {dtype}")


@clause(
    "MOD-META-INIT",
    sentence="to_empty followed by init_lora_weights initialises a layer that was patched on the meta device.",
    cases=LAWS,
    dtypes=("float32",),
    needs=("LinearLoRA.init_lora_weights",),
    weight=0.5,
)
def test_meta_init(subject: Subject, case: PatchCase) -> None:
    layer = _meta_layer(subject, case)
    seed_torch(case.seed)
    with poisoned_memory(), calling("to_empty and init_lora_weights of a layer patched on meta"):
        layer.to_empty(device=subject.device)
        layer.init_lora_weights("xavier")
    require_law(layer, "xavier")
    require_zero_B(layer)


@clause(
    "MOD-META-LOAD",
    sentence="""A layer patched on the meta device computes the formula after load_state_dict, whether to_empty came
    before or assign=True is used.""",
    cases=PATCH.narrowed(how=("to_empty", "assign"), values=("integers", "normal")),
    dtypes=("float32", "bfloat16"),
)
def test_meta_load(subject: Subject, case: PatchCase) -> float | None:
    operands = subject.operands(case)
    state = patched(subject, operands).module.state_dict()
    layer = _meta_layer(subject, case, alpha=case.scale * case.r)
    with poisoned_memory(), calling(f"load_state_dict of a layer patched on meta ({case.how})"):
        if case.how == "to_empty":
            layer.to_empty(device=subject.device)
        layer.load_state_dict(state, assign=case.how == "assign")
    instance = Instance(layer, {"x": operands.placed["x"].tensor}, operands)
    return judge(instance.forward(), LinearOracle(operands).y)


def _meta_layer(subject: Subject, case: PatchCase, **options: Any) -> Any:
    base = nn.Linear(case.k, case.n, bias=case.bias, device="meta", dtype=dtype_named(case.dtype))
    return patch(subject, base.train(case.training), dim=case.r, use_triton=case.triton, **options)


@clause(
    "MOD-META-MODEL",
    sentence="apply_lora_to_linear_modules accepts a model on the meta device and leaves every parameter there.",
    cases=LAYER.narrowed(triton=(False, True)),
    dtypes=("float32",),
    weight=0.25,
)
def test_meta_model(subject: Subject, case: PatchCase) -> None:
    with torch.device("meta"):
        model = Toy()
    count = apply(subject, model, match_all_linear=True, dim=case.r, use_triton=case.triton)
    require(count == len(TOY_LINEARS), f"{count} layers of a meta model were patched: expected {len(TOY_LINEARS)}")
    for name, parameter in model.named_parameters():
        require(parameter.is_meta, f"{name} is on {parameter.device} after patching a meta model: expected meta")


@clause(
    "MOD-COPY",
    sentence="""A copy of a patched layer made by deepcopy, pickle, torch.save or state_dict computes the same and
    owns its adapter.""",
    cases=PATCH.narrowed(how=WAYS, values=("integers", "normal")),
    dtypes=("float32", "bfloat16"),
)
def test_copy(subject: Subject, case: PatchCase) -> float | None:
    operands = subject.operands(case)
    instance = patched(subject, operands)
    clone = carried(instance.module, case.how)
    if case.how == "state_dict":
        fresh = patch_case(subject, case, alpha=case.scale * case.r)
        with calling("load_state_dict into a newly patched layer"):
            fresh.load_state_dict(clone)
        clone = fresh
    with torch.no_grad():
        adapter_of(instance.module, "lora_B").zero_()  # the copy must have its own adapter
    return judge(Instance(clone, instance.tensors, operands).forward(), LinearOracle(operands).y)


@clause(
    "MOD-COPY-CLASS",
    sentence="""A layer copied by deepcopy, pickle or torch.save keeps its classes, LinearLoRA and its subclass of
    nn.Linear, and every requires_grad, and shares no lora_A with the original.""",
    cases=LAYER.narrowed(how=WAYS[:3]),
    feature="in_place",
    dtypes=("float32",),
)
def test_copy_class(subject: Subject, case: PatchCase) -> None:
    layer = patch_case(subject, case, TaggedLinear)
    clone = carried(layer, case.how)
    require(isinstance(clone, TaggedLinear), f"{case.how} of a patched TaggedLinear gave a {type(clone).__name__}")
    lora = getattr(subject.target, "LinearLoRA", nn.Module)
    if isinstance(layer, lora):
        require(isinstance(clone, lora), f"{case.how} of a patched layer gave a {type(clone).__name__}")
    flags = [{name: p.requires_grad for name, p in m.named_parameters()} for m in (layer, clone)]
    require(flags[0] == flags[1], f"{case.how} changed requires_grad from {flags[0]} to {flags[1]}")
    with torch.no_grad():
        adapter_of(clone, "lora_A").add_(1)
    require(
        not torch.equal(adapter_of(clone, "lora_A"), adapter_of(layer, "lora_A")),
        f"{case.how} shares lora_A with the original",
    )


@clause(
    "MOD-COPY-MODEL",
    sentence="""A copy of a patched model made by deepcopy, pickle or torch.save has the same adapters and the same
    output, and shares no adapter with the original.""",
    cases=LAYER.narrowed(how=WAYS[:3]),
    dtypes=("float32",),
    weight=0.5,
)
def test_copy_model(subject: Subject, case: PatchCase) -> None:
    seed_torch(case.seed)
    model = Toy().to(subject.device).train(case.training)
    apply(subject, model, match_all_linear=True, dim=case.r, use_triton=case.triton)
    with torch.no_grad():
        for parameter in adapters(model).values():
            parameter.normal_()
    tokens = torch.arange(6, device=subject.device).reshape(2, 3)
    clone = carried(model, case.how)
    names = adapted(clone)
    require(names == adapted(model), f"{case.how} of the model has adapters at {names}: expected {adapted(model)}")
    with torch.no_grad(), calling(f"the forward pass of the {case.how} copy"):
        before, after = model(tokens), clone(tokens)
        require(torch.equal(before, after), f"the {case.how} copy of a patched model computes something else")
        for parameter in adapters(clone).values():
            parameter.zero_()
        require(torch.equal(model(tokens), before), f"the {case.how} copy shares adapters with the original")


def carried(module: nn.Module, how: str) -> Any:
    """A copy of a module made in one of the `WAYS`; for `state_dict` a copy of its state_dict."""
    with calling(f"{how} of a patched module"):
        if how == "deepcopy":
            return copy.deepcopy(module)
        if how == "pickle":
            return pickle.loads(pickle.dumps(module))
        saved = io.BytesIO()
        torch.save(module if how == "torch.save" else module.state_dict(), saved)
        saved.seek(0)
        return torch.load(saved, weights_only=how == "state_dict")
