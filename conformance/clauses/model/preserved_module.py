"""`patch_linear_module` preserves the module: its object, class, names, dtype, device, flags, hooks and ties."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from conformance.clauses.model.small_models import TaggedLinear, is_adapter
from conformance.clauses.model.target_calls import LAYER, PATCH, PatchCase, bound, linear, patch, patch_case, spelled
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import LinearOracle
from conformance.judgement.outcomes import require
from conformance.numerics.formats import dtype_named
from conformance.specification.clause import clause
from conformance.specification.features import ABSENT
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.subject import Subject, frozen_linear


@clause(
    "MOD-SAME-OBJECT",
    sentence="patch_linear_module patches in place: it returns the module it was given, with that module's attributes.",
    cases=LAYER,
    feature="in_place",
    dtypes=("float32",),
    weight=0.5,
)
def test_same_object(subject: Subject, case: PatchCase) -> None:
    base: Any = linear(subject, case)
    base.note = "kept"
    layer = patch(subject, base, dim=case.r, use_triton=case.triton)
    require(layer is base, f"patch_linear_module(layer) returned another {type(layer).__name__}: expected layer")
    sizes = (layer.in_features, layer.out_features, getattr(layer, "note", None))
    require(
        sizes == (case.k, case.n, "kept"),
        f"in_features, out_features and an own attribute are {sizes}: expected {(case.k, case.n, 'kept')}",
    )


@clause(
    "MOD-IS-LORA",
    sentence="A patched module is an instance of LinearLoRA and still of nn.Linear, with and without use_triton.",
    cases=LAYER,
    feature="in_place",
    dtypes=("float32",),
    needs=("LinearLoRA",),
    weight=0.5,
)
def test_is_lora(subject: Subject, case: PatchCase) -> None:
    layer = patch_case(subject, case)
    for kind in (subject.target.LinearLoRA, nn.Linear):
        require(
            isinstance(layer, kind),
            f"the patched layer is a {type(layer).__name__}, no instance of {kind.__name__}",
        )


@clause(
    "MOD-SUBCLASS",
    sentence="""A patched instance of an nn.Linear subclass remains an instance of that subclass, with its attributes,
    buffers and methods.""",
    cases=LAYER,
    feature="in_place",
    dtypes=("float32",),
    weight=0.5,
)
def test_subclass(subject: Subject, case: PatchCase) -> None:
    layer = patch_case(subject, case, TaggedLinear)
    require(
        isinstance(layer, TaggedLinear),
        f"a patched TaggedLinear is a {type(layer).__name__}: no TaggedLinear",
    )
    with calling("a method of the patched subclass"):
        said = layer.tagged()
    require(said == f"kept {case.k}", f"its method returned {said!r}: expected {f'kept {case.k}'!r}")
    names = [name for name, _ in layer.named_buffers() if not name.startswith("lora_")]
    require("counts" in names, f"its buffers are {names}: expected counts among them")


@clause(
    "MOD-NAMES",
    sentence="""Patching keeps the names of all parameters and state_dict entries, and adds lora_A.weight and
    lora_B.weight only.""",
    why="Checkpoints of the base model must still load into the patched model.",
    cases=LAYER,
    feature="in_place",
    dtypes=("float32",),
)
def test_names(subject: Subject, case: PatchCase) -> None:
    model = nn.Sequential(linear(subject, case), linear(subject, case, TaggedLinear))
    before = _names(model)
    for layer in model:
        patch(subject, layer, dim=case.r, use_triton=case.triton)
    new = {f"{i}.lora_{letter}.weight" for i in (0, 1) for letter in "AB"}
    for (what, old), now in zip(before.items(), _names(model).values(), strict=True):
        lost, extra, missing = sorted(old - now), sorted(now - old - new), sorted(new - now)
        require(not lost, f"{what} lost by patching: {', '.join(lost)}")
        require(
            not extra,
            f"{what} added by patching: {', '.join(extra)}; expected only lora_A.weight, lora_B.weight",
        )
        require(not missing, f"{what} missing after patching: {', '.join(missing)}")


def _names(model: nn.Module) -> dict[str, set[str]]:
    return {
        "parameters": {name for name, _ in model.named_parameters()},
        "state_dict keys": set(model.state_dict()),
    }


@clause(
    "MOD-WEIGHTS",
    sentence="Patching changes neither the values of weight and bias nor their dtype or device.",
    cases=LAYER,
)
def test_weights(subject: Subject, case: PatchCase) -> None:
    base = linear(subject, case)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    layer = patch(subject, base, dim=case.r, use_triton=case.triton)
    for name, old in before.items():
        new = getattr(layer, name)
        require(isinstance(new, torch.Tensor), f"{name} is {new!r} after patching: expected a tensor")
        require(new.dtype == old.dtype, f"{name} is {new.dtype} after patching: expected {old.dtype}")
        require(new.device == old.device, f"{name} is on {new.device} after patching: expected {old.device}")
        require(torch.equal(new.detach(), old), f"the values of {name} changed by patching")


@clause(
    "MOD-ADAPTER-PLACE",
    sentence="""lora_A [r, K] and lora_B [N, r] have the weight's dtype unless lora_dtype is given, and the weight's
    device.""",
    cases=LAYER,
)
def test_adapter_place(subject: Subject, case: PatchCase) -> None:
    layer = patch_case(subject, case)
    _require_adapter(layer, case, layer.weight.dtype)


@clause(
    "MOD-LORA-DTYPE",
    sentence="""lora_dtype, given as a torch.dtype or as a name ("bfloat16", "torch.bfloat16"), is the dtype of lora_A
    and lora_B; the weight keeps its dtype.""",
    cases=LAYER.narrowed(
        adapter=("bfloat16", "float32", "float16", "float64"), spelling=("torch.dtype", "name", "torch.name")
    ),
    feature="adapter_dtype",
    dtypes=("float32", "bfloat16"),
)
def test_lora_dtype(subject: Subject, case: PatchCase) -> None:
    wanted = dtype_named(case.adapter)
    layer = patch_case(subject, case, lora_dtype=spelled(wanted, case.spelling))
    _require_adapter(layer, case, wanted)
    require(layer.weight.dtype == dtype_named(case.dtype), f"weight became {layer.weight.dtype}")


def _require_adapter(layer: Any, case: PatchCase, dtype: torch.dtype) -> None:
    for name, shape in (("lora_A", [case.r, case.k]), ("lora_B", [case.n, case.r])):
        got = adapter_of(layer, name)
        require(list(got.shape) == shape, f"{name}.weight is {list(got.shape)}: expected {shape}")
        require(got.dtype == dtype, f"{name}.weight is {got.dtype}: expected {dtype}")
        require(
            got.device == layer.weight.device,
            f"{name}.weight is on {got.device}: expected {layer.weight.device}",
        )


@clause(
    "MOD-TRAINING-FLAG",
    sentence="Patching keeps the layer's training flag and sets the same flag on the adapter's modules.",
    cases=LAYER,
    dtypes=("float32",),
    weight=0.5,
)
def test_training_flag(subject: Subject, case: PatchCase) -> None:
    positions = () if subject.lacks("dropout") else subject.dropout_positions
    dropping: dict[str, Any] = {"dropout": 0.5, "dropout_position": positions[-1]} if positions else {}
    layer = patch_case(subject, case, **dropping)
    for name, module in layer.named_modules():
        require(
            module.training == case.training,
            f"a layer of training={case.training} was patched; {name or 'it'} has training={module.training}",
        )


@clause(
    "MOD-FROZEN",
    sentence="After patching exactly lora_A.weight and lora_B.weight are trainable; weight and bias are frozen.",
    cases=LAYER,
    dtypes=("float32",),
    weight=0.5,
)
def test_frozen(subject: Subject, case: PatchCase) -> None:
    for before in (True, False):
        base = linear(subject, case).requires_grad_(before)
        layer = patch(subject, base, dim=case.r, use_triton=case.triton)
        trainable = sorted(name for name, p in layer.named_parameters() if p.requires_grad)
        expected = ["lora_A.weight", "lora_B.weight"]
        if subject.follows("in_place", ABSENT):  # its adapters may have names of their own
            expected = sorted(name for name, p in layer.named_parameters() if is_adapter(name))
        was = "" if before else " a frozen layer"
        require(
            trainable == expected and len(expected) == 2,
            f"trainable after patching{was}: {', '.join(trainable)}; expected {', '.join(expected)}",
        )


@clause(
    "MOD-HOOKS",
    sentence="""Each hook registered before patching (forward, backward, state_dict, load_state_dict and their
    pre-hooks) still runs exactly once per call.""",
    cases=LAYER,
    dtypes=("float32",),
)
def test_hooks(subject: Subject, case: PatchCase) -> None:
    base: Any = linear(subject, case)
    ran: list[str] = []
    base.register_forward_pre_hook(lambda *_: ran.append("forward pre"))
    base.register_forward_hook(lambda *_: ran.append("forward"))
    base.register_forward_hook(lambda *given: ran.append("keywords" * (len(given) == 4)), with_kwargs=True)
    base.register_full_backward_pre_hook(lambda *_: ran.append("backward pre"))
    base.register_full_backward_hook(lambda *_: ran.append("backward"))
    base.register_state_dict_pre_hook(lambda *_: ran.append("state_dict pre"))
    base.register_state_dict_post_hook(lambda *_: ran.append("state_dict"))
    base.register_load_state_dict_pre_hook(lambda *_: ran.append("load_state_dict pre"))
    base.register_load_state_dict_post_hook(lambda *_: ran.append("load_state_dict"))
    layer = patch(subject, base, dim=case.r, use_triton=case.triton)
    with calling("forward, backward, state_dict and load_state_dict of the patched layer"):
        layer(torch.ones(2, case.k, device=subject.device, requires_grad=True)).sum().backward()
        layer.load_state_dict(layer.state_dict())
    expected = ["forward pre", "forward", "keywords", "backward pre", "backward", "state_dict pre", "state_dict"]
    expected += ["load_state_dict pre", "load_state_dict"]
    for hook in expected:
        require(
            ran.count(hook) == 1,
            f"the {hook} hook ran {ran.count(hook)} times on the patched layer: expected 1",
        )


@clause(
    "MOD-TIED",
    sentence="""Patching keeps the Parameter objects of weight and bias, so that a weight tied to another module stays
    tied.""",
    cases=LAYER,
    level="SHOULD",
    dtypes=("float32",),
    weight=0.5,
)
def test_tied(subject: Subject, case: PatchCase) -> None:
    base = linear(subject, case)
    before = dict(base.named_parameters())
    layer = patch(subject, base, dim=case.r, use_triton=case.triton)
    for name, parameter in before.items():
        require(
            getattr(layer, name) is parameter,
            f"{name} is another Parameter after patching: its ties are lost",
        )


@clause(
    "MOD-SIGNATURE",
    sentence="""After the layer patch_linear_module takes dim=8, alpha=32, dropout=0.0, dropout_position="post",
    lora_A_init_method="xavier", lora_dtype=None and use_triton=True, in this order and with these defaults.""",
    cases=PATCH.narrowed(r=(8,), scale=(4.0,), training=(True,), how=("defaults", "positional", "introspected")),
    dtypes=("float32",),
)
def test_signature(subject: Subject, case: PatchCase) -> float | None:
    seed = (8, 32, 0.0, "post", "xavier", None, True)
    if case.how == "introspected":
        _introspect(subject, seed)
        return None
    operands = subject.operands(case)
    layer = patch(subject, frozen_linear(operands).train(), *(seed if case.how == "positional" else ()))
    return judge(bound(layer, operands).forward(), LinearOracle(operands).y)


def _introspect(subject: Subject, seed: tuple[Any, ...]) -> None:
    try:
        parameters = list(inspect.signature(subject.target.patch_linear_module).parameters.values())[1:8]
    except (TypeError, ValueError):
        return  # no readable signature: the other two variants judge the defaults
    names = ["dim", "alpha", "dropout", "dropout_position", "lora_A_init_method", "lora_dtype", "use_triton"]
    for parameter, name, default in zip(parameters, names, seed, strict=False):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return
        found = f"{parameter.name}={parameter.default!r}"
        require(found == f"{name}={default!r}", f"patch_linear_module has {found}: expected {name}={default!r}")
