"""The case of one fused block, and the case spaces of the clauses on fused blocks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from conformance.cases.case import Space
from conformance.cases.laid_out_case import LaidOutCase
from conformance.cases.linear_case import LONG_SCALE
from conformance.cases.memory_layout import LAYOUTS
from conformance.numerics.dtypes import ADAPTER_DTYPES


@dataclass(frozen=True)
class FusedCase(LaidOutCase):
    """One block of three LoRA projections of x [*, k]; m tokens spread over the `lead` dimensions.

    Fields:
        n, o: `lora_qkv`: width of q, and of k and v. `lora_mlp`: width of gate and up, and of the output.
        r: rank of the first projection; the others have the same, or one and two more if `ranks` is `different`.
        scale: that of the first projection; the others have twice that scale, and its negative.
        bias: the projections that have a bias: `none`, `all`, or `second`.
        adapters: the projections that have an adapter: `all`, `none`, or the `first`, `second` or `third` alone.
        activation, gated: those of `lora_mlp`; integer cases use relu2, which keeps integers exact.
        lead, values, adapter, x, g, w, ab, training, autocast: as in a LinearCase, for every projection alike.
        special: `nan` or `inf` in one row of x, `saturated` (arguments of the activation of the order of 100), `steep`
            (of the order of 20, without a bias).
        sizes: the relation between sizes, as in a LinearCase.
    """

    o: int = 1
    ranks: str = "equal"
    bias: str = "none"
    adapters: str = "all"
    activation: str = "silu"
    gated: bool = True
    training: bool = True

    def within(self, subject: Any) -> FusedCase:
        """The case with a bias, a gate and an activation that the target has."""
        changes: dict[str, Any] = {}
        if subject.lacks("block_bias"):
            changes = {"bias": "none"} | ({"special": "steep"} if self.special == "saturated" else {})
        if subject.name == "lora_mlp":
            changes |= {"gated": True} if subject.lacks("ungated") else {}
            if self.activation in ACTIVATIONS and subject.lacks(f"activation_{self.activation}"):
                offered = [name for name in ACTIVATIONS if not subject.lacks(f"activation_{name}")]
                changes["activation"] = offered[self.seed % len(offered)]
                if self.values == "integers":  # relu2 alone keeps integers exact
                    changes["values"] = "normal"
        return dataclasses.replace(self, **changes)


def tamed(case: FusedCase) -> FusedCase:
    """The case made consistent: one token for a 1-D x, relu2 for integers, activation and gate that suit `special`."""
    changes: dict[str, object] = {"m": case.row_count}
    if case.values == "integers":
        changes |= {"activation": "relu2", "scale": case.whole_scale, "m": min(case.row_count, 5)}
    elif case.special == "saturated" and case.activation == "relu2":
        changes["activation"] = "silu"
    if case.special == "inf":  # without a gate, relu2 and gelu may map every infinity to 0
        changes["gated"] = True
    return dataclasses.replace(case, **changes)  # type: ignore[arg-type]


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu2")
FUSED = Space(
    FusedCase,
    tame=tamed,
    m=(1, 2, 3, 5, 9, 17),
    k=(1, 3, 16, 17, 33, 70),
    n=(2, 5, 16, 17, 35, 67),
    o=(1, 3, 16, 17, 34),
    r=(1, 3, 4, 8, 17),
    ranks=("equal", "different"),
    scale=(1.0, 2.0, -1.0, 0.5, LONG_SCALE),
    bias=("none", "all", "second"),
    activation=ACTIVATIONS,
    gated=(True, True, False),
    values=("integers", "normal", "normal", "normal"),
    training=(True, False),
)
SMALL = FUSED.narrowed(
    m=(2, 3, 5),
    k=(3, 17, 33),
    n=(5, 16, 35),
    o=(3, 17),
    r=(1, 3, 4),
    scale=(1.0, 2.0, -1.0, LONG_SCALE),
    training=(True,),
)
LAYOUT = SMALL.narrowed(x=LAYOUTS, g=LAYOUTS, w=LAYOUTS[:-1], ab=LAYOUTS[:-1], lead=("2d", "3d", "4d"))
# no r = 1: autograd would sum a gradient of shape [0, K], a mistake an empty batch may cause, to the right [1, K]
LEADING = SMALL.narrowed(m=(2, 0, 3, 5, 1), r=(2, 3, 4), lead=("1d", "3d", "4d", "2d", "3d"))


def partnered(case: FusedCase) -> FusedCase:
    """The case with an adapter of another dtype, the one that commonly accompanies the case's own."""
    return dataclasses.replace(tamed(case), adapter=ADAPTER_DTYPES[case.dtype])


MIXED = Space(FusedCase, tame=partnered, **SMALL.values)
