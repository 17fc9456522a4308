"""A layer on a packed base: it lives as any other, its storage stays as it is, and merging is refused."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from conformance.clauses.life.layer import OPERATIONS, SIZES
from conformance.clauses.life.layer_judgement import judge_both, judge_state
from conformance.clauses.life.layer_life import Life
from conformance.clauses.life.layer_states import Load, Transfer
from conformance.clauses.life.life_case import NAMES, LifeCase, LifeSpace
from conformance.clauses.life.lived import uninterpreted
from conformance.clauses.life.situation import Operation, Situation
from conformance.clauses.life.truth import LOW, Results, Truth
from conformance.clauses.quantised.case import PACKABLE
from conformance.clauses.quantised.packed_operands import decoded
from conformance.numerics.budget import STORE
from conformance.numerics.formats import Array, dtype_named, format_of
from conformance.specification.clause import clause
from conformance.target.signature import arguments_for
from conformance.target.subject import Subject

PACKED_BUILD = '''
def build(dtype, adapter_dtype):
    """A layer of the target on a packed base."""
    linear = nn.Linear({k}, {n}, bias={bias})
    linear.weight.data.copy_(unpacked)
    base = target.packed_linear(linear, {format!r}{options}).to(dtype)
    return target.patch_linear_module(base, {arguments}, lora_dtype=adapter_dtype)


def stored(layer):
    """The bytes and the dtype of each field of a layer's storage."""
    fields = target.packed_fields(layer)["fields"]
    flat = {{name: field.detach().clone().contiguous().reshape(-1) for name, field in fields.items()}}
    return {{name: (field.dtype, field.view(torch.uint8).tolist()) for name, field in flat.items()}}
'''
REFUSED = """refused = None
try:
    layer.merge()
except Exception as error:
    refused = error"""
PACKED = Situation(base="packed")


@dataclass(frozen=True)
class PackedLifeCase(LifeCase):
    """The life of a layer on a packed base.

    Fields:
        format: the format of the base.
    """

    format: str = "nf4"


class PackedResults(Results):
    """The expected results on a packed base: Ŵ may be stored in the compute dtype, or its scale applied last."""

    def _slack(self, name: str) -> Array:
        slack = super()._slack(name)
        if name not in ("y", "x"):
            return slack
        low = LOW if self.autocast else self.truth.dtype
        unit = max(format_of(low).unit, format_of(torch.float32).unit)
        rows, weight = (self.x, self.weight.T) if name == "y" else (self.g, self.weight)
        return np.asarray(slack + STORE * unit * np.sqrt(rows**2 @ weight**2) + unit * (rows @ weight))


class PackedTruth(Truth):
    """The exact state of a layer whose weight is Ŵ, which no cast reaches."""

    def convert(self, dtype: torch.dtype) -> None:
        weight = self.values["weight"]
        super().convert(dtype)
        self.values["weight"] = weight

    def results(self, x: Array, g: Array, *, autocast: bool) -> list[Results]:
        scale = 0.0 if self.training and self.vanishing else self.scale
        return [PackedResults(self, x, g, autocast, self.values["lora_A"], self.values["lora_B"], scale)]


class PackedLife(Life):
    """One layer on a packed base and the truth about it."""

    case: PackedLifeCase

    def run(self, code: str, **given: Any) -> None:
        """Run lines of Python on the target; kernels are interpreted in the first life only, which takes seconds."""
        with uninterpreted() if self.case.seed else nullcontext():
            super().run(code, **given)

    def _build_text(self) -> str:
        _, mark, rest = super()._build_text().partition("\n\n\ndef held")
        case = self.case
        alpha = case.scale * case.r
        wanted: dict[str, Any] = {"dim": case.r, "alpha": int(alpha) if alpha == int(alpha) else alpha}
        if self.vanishing:
            wanted |= {"dropout": case.dropout, "dropout_position": self.subject.dropout_positions[0]}
        given = arguments_for(self.subject.target.patch_linear_module, wanted)
        arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
        form = self._format()
        options = f", group_size={case.k}" if form == "int4" else ""
        sizes = {"k": case.k, "n": case.n, "bias": case.bias}
        return PACKED_BUILD.format(**sizes, format=form, options=options, arguments=arguments) + mark + rest

    def _format(self) -> str:
        """The case's format, or another one that the target has."""
        offered = [name for name in PACKABLE if not self.subject.lacks(f"format_{name}")]
        return self.case.format if self.case.format in offered or not offered else offered[0]

    def _begin(self) -> None:
        case = self.case
        dtypes = dtype_named(case.dtype), dtype_named(case.adapter if self.mixed else case.dtype)
        self.truth = PackedTruth({}, case.scale, *dtypes, vanishing=self.vanishing)
        build = "layer = build(dtype, adapter_dtype).train()"
        self.run(build, unpacked=self.drawn(), dtype=dtypes[0], adapter_dtype=dtypes[1])
        self.rebind()
        self.take_storage("layer")
        for name in ("bias", "lora_A", "lora_B"):
            if name != "bias" or case.bias:
                self.fill(name)

    def drawn(self) -> torch.Tensor:
        """A weight to pack."""
        values = (self._normal((self.case.n, self.case.k)) / self.case.k**0.5).round(3)
        return torch.from_numpy(values).float()

    @property
    def watched(self) -> bool:
        """Whether the bytes of the storage are compared."""
        return hasattr(self.subject.target, "packed_fields") and not self.subject.follows("packed_storage", "repacked")

    def take_storage(self, name: str) -> None:
        """Go on with the storage that a layer of this name has."""
        shape = self.case.n, self.case.k
        self.truth.values["weight"], _ = decoded(self.subject.target, self.names[name], shape)
        if self.watched:
            self.run(f"before = stored({name})")


class OnPacked(Operation):
    """An operation that may happen on a packed base whenever it may on a plain one."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.name, self.keeps_graph, self.needs = operation.name, operation.keeps_graph, operation.needs

    def fits(self, now: Any) -> bool:
        return self.operation.fits(now.but(base="plain"))

    def effect(self, now: Any) -> Any:
        return self.operation.effect(now)

    def available(self, life: Any) -> bool:
        return self.operation.available(life)

    def act(self, life: Any) -> None:
        self.operation.act(life)


class PackedLoad(Load):
    """Another layer's state_dict, with its storage."""

    def act(self, life: Any) -> None:
        truth = life.truth
        dtypes = {"dtype": truth.dtype, "adapter_dtype": truth.adapter_dtype}
        life.run("other = build(dtype, adapter_dtype)", unpacked=life.drawn(), **dtypes)
        for name in truth.values.keys() - {"weight"}:
            values = life.values(name)
            filled = f'with torch.no_grad():\n    held(other, "{name}").copy_(value)'
            life.run(filled, value=life.tensor(name, values))
            truth.values[name] = values
        life.take_storage("other")
        life.run(f"layer.load_state_dict(other.state_dict(){', assign=True' if self.assign else ''})")
        if self.assign:
            life.rebind()


class PackedTransfer(Transfer):
    """The layer's state_dict, loaded into a layer with another storage, which takes its place."""

    def act(self, life: Any) -> None:
        life.run("", unpacked=life.drawn())
        super().act(life)


class RefusedMerge(Operation):
    """Merging, which a packed base refuses."""

    name, needs, keeps_graph = "merge-refused", "merge", True

    def available(self, life: Any) -> bool:
        return super().available(life) and life.subject.convention("packed_merge") == "refused"

    def act(self, life: Any) -> None:
        life.run(REFUSED)
        life.require("isinstance(refused, ValueError)", "merge() raised no ValueError: expected it refused")


USES = ("forward", "backward", "step", "no-grad", "inference", "checkpoint", "autocast", "leave")
FILLS = ("fill-bias", "fill-A", "fill-B", "replace-A", "replace-B", "exchange", "init")
CHANGES = (*FILLS, "scale", "toggle-bias", "hook", "train", "eval", "to-float64", "to-float32", "to-bfloat16")
COPIES = ("deepcopy", "pickle", "copy-aside", "reload", "meta")
CHANGED: tuple[Operation, ...] = (
    PackedLoad("load", assign=False),
    PackedLoad("assign", assign=True),
    PackedTransfer(),
    RefusedMerge(),
)
ON_PACKED: dict[str, Operation] = {
    **{name: OnPacked(OPERATIONS[name]) for name in (*USES, *CHANGES, *COPIES)},
    **{operation.name: OnPacked(operation) for operation in CHANGED},
}
NAMES += [RefusedMerge.name]


def lacking(subject: Subject) -> set[str]:
    """The operations that a subject's layer on a packed base does not have."""
    life = PackedLife(subject, PackedLifeCase(k=5, n=4, r=2, bias=True), PACKED)
    return {name for name, operation in ON_PACKED.items() if not operation.available(life)}


LIVES = LifeSpace(ON_PACKED, PACKED, lacking, case_type=PackedLifeCase, format=PACKABLE, **SIZES)


@clause(
    "LIFE-LAYER-PACKED",
    sentence="""After any sequence of operations on a layer on a packed base, y and the gradients are those of the
    formula on Ŵ with the present adapter, and the storage is byte for byte what it was, or what was loaded; merging is
    refused, and the layer lives on.""",
    cases=LIVES,
    dtypes=("float32", "bfloat16"),
    subjects=("LinearLoRA",),
    needs=("packed_linear", "patch_linear_module"),
    weight=2.3,  # 53 lives meet every pair
)
def test_life_on_a_packed_base(subject: Subject, case: PackedLifeCase) -> float | None:
    return PackedLife(subject, case, PACKED).live(ON_PACKED, judge_packed)


def judge_packed(life: PackedLife) -> None:
    """Judge y, the gradients and the state of the layer, and the bytes of its storage."""
    judge_both(life)
    judge_state(life)
    if life.watched:
        life.require("stored(layer) == before", "the storage has other bytes or dtypes than before")
