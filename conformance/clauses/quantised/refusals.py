"""Calls that cannot be right on a packed base, and weights that cannot be packed: refused by name, nothing changed."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import nn

from conformance.clauses.quantised.case import SMALL, PackedCase
from conformance.clauses.quantised.packed_operands import adapted, operands_of, packed_base
from conformance.clauses.quantised.storage_state import LAYERS, require_kept, stored_in
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

ONE = SMALL.narrowed(k=(32,), n=(16,), r=(2,), m=(3,))
INFINITE = (float("nan"), float("inf"), -float("inf"))


@clause(
    "QNT-REFUSE-FORMAT",
    sentence="""packed_linear refuses, with a ValueError, a format that does not exist, naming it and the formats that
    do; an option that the format does not have, naming it; and a block size that is no positive whole number or does
    not divide the weight, naming both.""",
    cases=SMALL.narrowed(k=(32, 70), n=(16, 35)),
    level="SHOULD",
    dtypes=("float32",),
    subjects=LAYERS,
    weight=0.5,
)
def test_formats(subject: Subject, case: PackedCase) -> None:
    operands = operands_of(subject, case)
    linear, case, call = operands.linear, operands.case, subject.target.packed_linear
    before = linear.weight.detach().clone()
    refuses("packed_linear(linear, 'nf5')", lambda: call(linear, "nf5"), "nf5", case.format)
    option = {f"{case.format}_option": 3}
    shown, errors = f"packed_linear(linear, {case.format!r}, {case.format}_option=3)", (ValueError, TypeError)
    refuses(shown, lambda: call(linear, case.format, **option), f"{case.format}_option", types=errors)
    for options, words in _bad_sizes(case):
        said = ", ".join(f"{key}={value!r}" for key, value in options.items())
        refuses(
            f"packed_linear(linear, {case.format!r}, {said})", partial(call, linear, case.format, **options), *words
        )
    same = type(linear) is nn.Linear and torch.equal(linear.weight, before)
    require(same, "a refused packed_linear changed the layer it was given")


def _bad_sizes(case: PackedCase) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """Block sizes that a format cannot have for this weight, with the words of its error."""
    if case.format in ("nf4", "fp4"):
        return [({"block_size": size}, ("block_size", repr(size))) for size in (0, -64, 2.5)]
    if case.format == "int4":
        return [({"group_size": size}, ("group_size", repr(size))) for size in (0, case.k - 1)]
    if case.format == "fp8":
        return [({"block_size": (case.n - 1, case.k)}, ("block_size", str(case.n - 1), str(case.n)))]
    return []


@clause(
    "QNT-REFUSE-NUMBERS",
    sentence="""packed_linear refuses a weight that holds NaN or inf with a ValueError that says so, in every
    format.""",
    why="One NaN makes the scale of its block NaN, and with it 63 right weights.",
    cases=SMALL,
    level="SHOULD",
    dtypes=("float32", "bfloat16"),
    subjects=LAYERS,
    weight=0.34,
)
def test_numbers(subject: Subject, case: PackedCase) -> None:
    operands = operands_of(subject, case)
    linear, case = operands.linear, operands.case
    value = INFINITE[case.seed % 3]
    with torch.no_grad():
        linear.weight[case.seed % case.n, case.seed % case.k] = value
    what = f"packed_linear of a weight with a {value}, in {case.format},"
    said = refuses(what, lambda: subject.target.packed_linear(linear, case.format, **case.options)).lower()
    named = "nan" in said or "inf" in said or "finite" in said
    require(named, f"{what}: the error {said!r} does not say that the weight holds NaN or inf")


@clause(
    "QNT-REFUSE-FIELDS",
    sentence="""PackedWeight refuses, with a ValueError, a field of another dtype or shape than its format's, naming the
    field, and what it is; a missing or surplus field, naming it; and a format that does not exist.""",
    why="Codes of another layout have the right number of bytes as often as not.",
    cases=SMALL,
    dtypes=("float32",),
    subjects=LAYERS,
    needs=("PackedWeight", "packed_fields"),
    weight=0.5,
)
def test_fields(subject: Subject, case: PackedCase) -> None:
    operands = operands_of(subject, case)
    with calling("packed_fields"):
        found = subject.target.packed_fields(packed_base(subject, operands))
    fields, form = dict(found["fields"]), found["format"]
    make = subject.target.PackedWeight
    name = list(fields)[case.seed % len(fields)]
    field = fields[name]
    wrong = torch.float64 if field.is_floating_point() and field.dtype.itemsize > 1 else torch.int64
    spoilt: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
        (f"{name} in {wrong}", {**fields, name: field.to(wrong)}, (name, str(wrong).removeprefix("torch."))),
        (f"{name} with a dimension more", {**fields, name: field[None]}, (name, str([1, *field.shape]))),
        (f"no {name}", {key: t for key, t in fields.items() if key != name}, (name,)),
        ("a field more", {**fields, "offsets": field}, ("offsets",)),
    )
    with calling("PackedWeight(…) of the right fields"):
        make(form, found["shape"], fields, found["options"])
    for what, given, words in spoilt:
        call = f"PackedWeight({form!r}, …) with {what}"
        refuses(call, partial(make, form, found["shape"], given, found["options"]), *words)
    refuses("PackedWeight('nf5', …)", lambda: make("nf5", found["shape"], fields, {}), "nf5")


@clause(
    "QNT-REFUSE-CUSTOM",
    sentence="""replace_layers_with_custom refuses a model with a layer on a packed base, adapted or not, and
    HybridFHEModel refuses to send one: an error names its path, dtype and shape, and the model is as it was.""",
    why="The products of a CustomLinear, and those of a server, are products with the weight as it is: with codes.",
    cases=ONE,
    level="SHOULD",
    dtypes=("float32",),
    subjects=LAYERS,
    needs=("LoraTraining", "HybridFHEModel"),
    weight=0.34,
)
def test_wrapping(subject: Subject, case: PackedCase) -> None:
    operands = operands_of(subject, case)
    base = packed_base(subject, operands)
    layer = adapted(subject, operands, base).module if case.seed % 2 else base
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "proj": layer})
    before = stored_in(subject, layer, (operands.case.n, operands.case.k))
    words = "proj", str(layer.weight.dtype).removeprefix("torch."), str(list(layer.weight.shape))
    errors = (ValueError, TypeError, NotImplementedError)
    target, kinds = subject.target, [type(module) for module in model.modules()]
    refuses("replace_layers_with_custom of a model with a packed base",
            lambda: target.LoraTraining.replace_layers_with_custom(model, False), *words, types=errors)  # fmt: skip
    refuses("HybridFHEModel of a packed base", lambda: target.HybridFHEModel(model, ["proj"]), *words, types=errors)
    now = [type(module) for module in model.modules()]
    require(now == kinds, f"the refused calls made {[kind.__name__ for kind in now]} of {[k.__name__ for k in kinds]}")
    require_kept(subject, before, layer, "the refused calls")


@clause(
    "QNT-REFUSE-SHARDS",
    sentence="""colwise_parallel_lora and rowwise_parallel_lora refuse a layer on a packed base, naming its class and
    the dtype and shape of its weight, and leave it as it is.""",
    why="Blocks run across rows and bytes hold two columns: a rank's part of the codes has none of its own scales.",
    cases=ONE,
    dtypes=("float32",),
    subjects=LAYERS,
    needs=("colwise_parallel_lora", "rowwise_parallel_lora"),
    weight=0.1,
)
def test_sharding(subject: Subject, case: PackedCase) -> None:
    operands = operands_of(subject, case)
    layer = adapted(subject, operands).module
    before = stored_in(subject, layer, (operands.case.n, operands.case.k))
    words = str(layer.weight.dtype).removeprefix("torch."), str(list(layer.weight.shape)), "packed"
    target = subject.target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for style in (target.colwise_parallel_lora, target.rowwise_parallel_lora):
            what, errors = f"{style.__name__} of a layer on a packed base", (ValueError, NotImplementedError)
            said = refuses(what, partial(_parallelised, layer, style), *words, types=errors)
            require(type(layer).__name__ in said, f"the error {said!r} does not name the class {type(layer).__name__}")
    require_kept(subject, before, layer, "the refused sharding")


def _parallelised(layer: Any, style: Any) -> Any:
    """The layer in a style of tensor parallelism, on a mesh of one rank that sends nothing."""
    from torch import distributed
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    if distributed.is_initialized():
        raise Inconclusive("a process group exists already")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import parallelize_module

    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        return parallelize_module(layer, init_device_mesh("cpu", (1,)), style())
    finally:
        distributed.destroy_process_group()
