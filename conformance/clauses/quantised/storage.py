"""The storage of a packed base through a training run: steps, modes, copies, loading and casts leave it as it is."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from typing import Any

import torch

from conformance.clauses.quantised.case import DTYPES, SMALL, PackedCase
from conformance.clauses.quantised.oracle import PackedOracle
from conformance.clauses.quantised.packed_operands import PackedOperands, adapted, operands_of
from conformance.clauses.quantised.storage_state import LAYERS, Storage, require_frozen, require_kept, stored_in
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Instance, Subject

BIASED = SMALL.narrowed(bias=(True, False))
CASTS = {"float32": ("half()", "bfloat16()", "to(torch.float64)"), "bfloat16": ("float()",), "float16": ("float()",)}
MODES = ("no_grad in train mode", "no_grad in eval mode", "inference_mode", "eval mode", "train mode")


def built(subject: Subject, case: PackedCase) -> tuple[Instance, Storage]:
    """The case's adapted layer, and its storage."""
    operands = operands_of(subject, case)
    instance = adapted(subject, operands)
    return instance, stored_in(subject, instance.module, (operands.case.n, operands.case.k))


def judged(layer: Any, operands: PackedOperands, what: str) -> float | None:
    """Judge y and dX of a layer that should compute with these operands."""
    x = operands.placed["x"].tensor.detach().clone()
    other = Instance(layer, {"x": x, **{n: adapter_of(layer, n) for n in TRAINABLE[1:]}}, operands, module=layer)
    for name in TRAINABLE[1:]:
        other.tensors[name].grad = None
    other.require_grad(TRAINABLE)
    y = other.forward()
    other.backward(y)
    oracle = PackedOracle(operands)
    named = (dataclasses.replace(e, name=f"{e.name} {what}") for e in (oracle.y, oracle.dX))
    return worst(*(judge(got, wanted) for got, wanted in zip((y, other.gradient("x")), named, strict=True)))


@clause(
    "QNT-KEEP-STEPS",
    sentence="""Training steps with weight decay over all parameters change no byte, dtype or shape of the storage,
    and no packed field requires grad, before them and after them; y and dX are then those of the trained adapter on
    Ŵ. By the convention `packed_storage: repacked` the bytes may change, but not the numbers that they stand for.""",
    why="The optimiser is often given every parameter of the model; decayed codes are other codes.",
    cases=BIASED,
    dtypes=("float32", "bfloat16"),
    subjects=LAYERS,
    weight=0.5,
)
def test_steps(subject: Subject, case: PackedCase) -> float | None:
    instance, before = built(subject, dataclasses.replace(case, training=True))
    layer, operands = instance.module, instance.operands
    assert isinstance(operands, PackedOperands)
    require_frozen(subject, layer, "after patching")
    kind: Any = torch.optim.AdamW if case.seed % 2 else torch.optim.SGD
    with calling(f"{kind.__name__} over all parameters of the layer"):
        optimiser = kind(layer.parameters(), lr=0.25, weight_decay=0.5)
    for _ in range(2):
        optimiser.zero_grad()
        instance.backward(instance.forward())
        for name in TRAINABLE[1:]:  # of size 1, so that the numbers stay moderate
            gradient = instance.tensors[name].grad
            if gradient is not None and gradient.any():
                gradient.div_(gradient.norm())
        optimiser.step()
    what = f"two steps of {kind.__name__} with weight decay"
    require_kept(subject, before, layer, what)
    require_frozen(subject, layer, f"after {what}")
    for name in TRAINABLE[1:]:
        trained = numbers(adapter_of(layer, name))
        require(bool((trained != operands.values[name]).any()), f"{what} changed no element of {name}")
        operands.values[name] = trained
    return judged(layer, operands, f"after {what}")


@clause(
    "QNT-KEEP-MODES",
    sentence="""Calls in train and eval mode, with a graph, under no_grad and under inference_mode, change no byte,
    dtype or shape of the storage, and y and dX are right after them. By the convention `packed_storage: repacked` the
    bytes may change, but not the numbers that they stand for.""",
    why="A layer that repacks its weight for faster inference goes on training with the other layout.",
    cases=SMALL,
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.5,
)
def test_modes(subject: Subject, case: PackedCase) -> float | None:
    instance, before = built(subject, case)
    layer, first = instance.module, case.seed % len(MODES)
    for mode in (*MODES[first:], *MODES[:first]):
        layer.train("train" in mode)
        with torch.inference_mode("inference" in mode), torch.set_grad_enabled(mode in ("eval mode", "train mode")):
            x = instance.operands.placed["x"].tensor.detach().clone()
            with calling(f"the forward pass under {mode}"):
                layer(x)
        require_kept(subject, before, layer, f"a call under {mode}")
    layer.train(case.training)
    assert isinstance(instance.operands, PackedOperands)
    return judged(layer, instance.operands, "after calls in every mode")


@clause(
    "QNT-KEEP-COPY",
    sentence="""A copy of a layer by deepcopy or pickle has the same storage, in memory of its own, and computes the
    same; the storage of the original stays as it is.""",
    cases=SMALL,
    dtypes=("float32", "bfloat16"),
    subjects=LAYERS,
    weight=0.5,
)
def test_copies(subject: Subject, case: PackedCase) -> float | None:
    instance, before = built(subject, case)
    deep = bool(case.seed % 2) or subject.follows("pickling", "absent")
    what = "deepcopy" if deep else "pickle"
    with calling(f"{what} of the layer"):
        other = copy.deepcopy(instance.module) if deep else pickle.loads(pickle.dumps(instance.module))
    require_kept(subject, before, other, f"{what} in the copy")
    require_kept(subject, before, instance.module, f"{what} in the original")
    mine, its = (_addresses(subject, layer) for layer in (instance.module, other))
    shared = [name for name in mine if mine[name] and mine[name] == its.get(name)]
    require(not shared, f"the copy by {what} shares the memory of {', '.join(shared)} with the original")
    assert isinstance(instance.operands, PackedOperands)
    return judged(other, instance.operands, f"of the copy by {what}")


def _addresses(subject: Subject, layer: Any) -> dict[str, int]:
    """The address of each field by name."""
    if not hasattr(subject.target, "packed_fields"):
        return {}
    with calling("packed_fields(layer)"):
        fields = subject.target.packed_fields(layer)["fields"]
    return {name: tensor.data_ptr() for name, tensor in fields.items()}


@clause(
    "QNT-KEEP-LOAD",
    sentence="""A layer that loads the state_dict of another one, through torch.save, in place or with assign=True, has
    that layer's storage and adapter, and computes the same.""",
    why="A scale that is in no buffer stays behind, and the codes then stand for other numbers.",
    cases=SMALL,
    dtypes=("float32", "bfloat16"),
    subjects=LAYERS,
    weight=0.5,
)
def test_loading(subject: Subject, case: PackedCase) -> float | None:
    instance, before = built(subject, case)
    fitted = instance.operands.case  # a seed chooses among the formats that a target has; the other layer has the same
    assert isinstance(fitted, PackedCase)
    other, _ = built(subject, dataclasses.replace(fitted, seed=case.seed + 2))
    assign = bool(case.seed % 2)
    what = f"load_state_dict(…, assign={assign})"
    with calling(f"state_dict, torch.save, torch.load and {what}"):
        file = io.BytesIO()
        torch.save(instance.module.state_dict(), file)
        file.seek(0)
        other.module.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    require_kept(subject, before, other.module, what)
    require_frozen(subject, other.module, f"after {what}")
    assert isinstance(instance.operands, PackedOperands)
    return judged(other.module, instance.operands, "of the layer that loaded the state_dict")


@clause(
    "QNT-KEEP-TO",
    sentence="""A cast of a layer, by to(dtype), half(), bfloat16() or float(), changes the dtype of adapter and bias
    alone: no byte, dtype or shape of the storage changes, that of the scales included; y and dX are then right in the
    new dtype.""",
    why="Scales in 16 bits are other scales, and codes cast to floats are no codes.",
    cases=BIASED,
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.5,
)
def test_casts(subject: Subject, case: PackedCase) -> float | None:
    instance, before = built(subject, case)
    layer, narrow = instance.module, instance.operands
    assert isinstance(narrow, PackedOperands)
    options = CASTS[case.dtype]
    cast = options[case.seed % len(options)]
    with calling(f"layer.{cast}"):
        layer = {
            "half()": layer.half,
            "bfloat16()": layer.bfloat16,
            "float()": layer.float,
            "to(torch.float64)": lambda: layer.to(torch.float64),
        }[cast]()
    require_kept(subject, before, layer, f"layer.{cast}")
    dtype = {"half()": torch.float16, "bfloat16()": torch.bfloat16, "float()": torch.float32}.get(cast, torch.float64)
    for name in TRAINABLE[1:]:
        got = adapter_of(layer, name).dtype
        require(got == dtype, f"after layer.{cast} {name} is {got}: expected {dtype}")
    if cast != "float()":
        return None  # the adapter has been rounded
    wide = PackedOperands(dataclasses.replace(narrow.case, dtype="float32", adapter="same"), subject.device)
    wide.values, wide.stored = narrow.values, narrow.stored
    return judged(layer, wide, f"after layer.{cast}")
