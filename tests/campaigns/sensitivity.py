"""`python -m tests.campaigns.sensitivity` prints the share of cases, by size, that detect each small defect."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conformance.judgement.outcomes import Inconclusive, Violation
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.check_case import check_case
from conformance.target.target import Target
from tests.baselines.linear import Right
from tests.campaigns.variants.products import ProductsBy

GRADIENTS = ("LIN-FWD", "LIN-BWD-DX", "LIN-BWD-DA", "LIN-BWD-DB")


class Scales(Right):
    """Every use of the scale is wrong by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def lora_linear(
        self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, scale: float, **options: Any
    ) -> Tensor:
        return super().lora_linear(x, weight, bias, lora_A, lora_B, scale * self.factor, **options)


def narrow_sums(a: Tensor, b: Tensor, chunk: int = 1) -> Tensor:
    """a bᵀ with an accumulator in the operands' dtype, to which products are added one by one or in chunks."""
    total = a.new_zeros(len(a), len(b))
    for k in range(0, a.shape[1], chunk):
        part = a[:, k : k + chunk].float() @ b[:, k : k + chunk].float().T
        total = (total.float() + part).to(a.dtype)
    return total


def chunked_sums(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ with float32 sums inside chunks of 16 and an accumulator in the operands' dtype between them."""
    return narrow_sums(a, b, 16)


def short_products(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ with both operands truncated to the ten mantissa bits of TensorFloat-32."""
    cut = [(t.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (a, b)]
    return cut[0] @ cut[1].T


def half_products(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ with both operands rounded to float16."""
    return a.half().float() @ b.half().float().T


class SpoilsOneElement(Right):
    """The last element of the base output is wrong by 3 percent."""

    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = super().base(x, weight, bias).clone()
        if y.numel():
            y.view(-1)[-1] *= 1.03
        return y


class LosesOneProduct(Right):
    """Each sum of the base output lacks one of its products."""

    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kept = x.clone()
        kept[:, x.shape[1] // 3] = 0
        return super().base(kept, weight, bias)


@dataclass(frozen=True)
class Defect:
    """A defect with its dtype, the clauses that should detect it, and the sizes (m, k, n, r)."""

    name: str
    target: Right
    dtype: str
    clauses: tuple[str, ...]
    sizes: tuple[tuple[int, int, int, int], ...]


SIZES = ((1, 3, 3, 1), (3, 16, 16, 4), (17, 33, 17, 3), (33, 64, 65, 8), (64, 257, 64, 16), (100, 300, 33, 17))
DEEP = ((3, 64, 16, 4), (17, 64, 33, 8), (5, 257, 16, 4), (33, 1031, 16, 8))
WIDE = ((3, 16, 16, 4), (17, 33, 17, 3), (33, 64, 65, 8), (64, 257, 64, 16), (17, 1031, 17, 8))
DEFECTS = (
    Defect("scale 1.01", Scales(1.01), "float32", GRADIENTS, SIZES),
    Defect("scale 1.01", Scales(1.01), "float16", GRADIENTS, SIZES),
    Defect("scale 1.03", Scales(1.03), "bfloat16", GRADIENTS, SIZES),
    Defect("accumulates in bfloat16", ProductsBy(narrow_sums), "bfloat16", ("LIN-FWD", "LIN-BWD-DX"), DEEP),
    Defect("accumulates in float16", ProductsBy(narrow_sums), "float16", ("LIN-FWD", "LIN-BWD-DX"), DEEP[1:]),
    Defect("bfloat16 between chunks", ProductsBy(chunked_sums), "bfloat16", ("LIN-FWD", "LIN-BWD-DX"), DEEP),
    Defect("TF32 products", ProductsBy(short_products), "float32", ("LIN-FWD", "LIN-BWD-DX"), WIDE),
    Defect("float16 products", ProductsBy(half_products), "float32", ("LIN-FWD", "LIN-BWD-DX"), WIDE),
    Defect("one wrong element", SpoilsOneElement(), "float32", ("LIN-FWD",), SIZES),
    Defect("one wrong element", SpoilsOneElement(), "bfloat16", ("LIN-FWD",), SIZES),
    Defect("one product lost", LosesOneProduct(), "float32", ("LIN-FWD",), ((3, 4096, 16, 4), (17, 4096, 8, 8))),
    Defect("one product lost", LosesOneProduct(), "bfloat16", ("LIN-FWD",), ((3, 4096, 16, 4), (17, 4096, 8, 8))),
)


def seen(defect: Defect, clause: str, size: tuple[int, int, int, int], cases: int) -> Iterator[bool]:
    """Yield, for each decided case of this size, whether the clause detects the defect."""
    about = load_all()[clause]
    subject = Target.of(defect.target, defect.name).subjects(about)[0]
    fixed = dict(zip(("m", "k", "n", "r"), size, strict=True))
    # y sums over k and dX over n: exchanging the sizes gives both the same depth.
    if clause == "LIN-BWD-DX":
        fixed["k"], fixed["n"] = fixed["n"], fixed["k"]
    for index in range(cases):
        case = about.cases.draw(0, clause, index, dtype=defect.dtype)
        try:
            check_case(about, subject, dataclasses.replace(case, lead="2d", **fixed))
        except Violation:
            yield True
        except Inconclusive:
            continue
        else:
            yield False


def main() -> int:
    """Print, for each defect and clause, the share of cases of each size that detect it."""
    cases = 10 * PROFILES["quick"].volume
    for defect in DEFECTS:
        for clause in defect.clauses:
            shares = []
            for size in defect.sizes:
                found = list(seen(defect, clause, size, cases))
                shares.append(f"{'·'.join(map(str, size))} {sum(found) / len(found):.0%}")
            print(f"{defect.name:<26} {defect.dtype:<9} {clause:<11} {'   '.join(shares)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
