"""Operands of one LoRA linear layer, made from a case: exact values, placed tensors, and how they round."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from conformance.budget import Rounding
from conformance.case import Case, Space
from conformance.numerics import Array, dtype_named, format_of, rounded
from conformance.placement import Placed, place


@dataclass(frozen=True)
class LinearCase(Case):
    """One LoRA linear layer: y [*, n] from x [*, k] with rank r; m tokens spread over the `lead` dimensions.

    Fields:
        lead: leading dimensions of x: `1d` (none), `2d`, `3d`, `4d`; m is rounded up to fill them.
        scale: alpha ÷ r (the factor itself, unless `rslora` names it otherwise).
        values: `integers` (exact lane), `cancelling` (exact lane: large partial sums of a small result, exact in a
            float32 accumulator but not in a 16-bit one), `normal`, `positive` (nothing cancels), `huge-term`
            (one product of 32 times the others' size).
        adapter: dtype of lora_A and lora_B, `same` as the base or another.
        x, g, w, ab: layout of the input, the upstream gradient, the weight, and lora_A and lora_B.
        special: `nan` or `inf` in one row of x, `zero-x`, `zero-B`, `denormal` x, or `identity` (r = k = n,
            lora_A = lora_B = I, W = 0: what dropout does to x, or to the update, is then read off y);
            `near-overflow` (x so large that an intermediate is close to the largest number, and partial sums
            beyond it), `overflow-before-scale` (the update fits, but not before its scale; W = 0).
        autocast: the region's dtype; operands then hold values that this dtype represents.
    """

    m: int = 1
    k: int = 1
    n: int = 1
    r: int = 1
    scale: float = 1.0
    bias: bool = False
    lead: str = "2d"
    values: str = "integers"
    adapter: str = "same"
    x: str = "packed"
    g: str = "packed"
    w: str = "packed"
    ab: str = "packed"
    training: bool = True
    dropout: float = 0.0
    position: str = "post"
    special: str = "none"
    autocast: str = "off"

    def cut_for(self, lane: str) -> LinearCase:
        """The case as a lane can afford it: the interpreter runs one program of 16³ in about 10 ms."""
        return tamed(self, WORK_INTERPRETED) if lane == "interpreter" else self

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading dimensions of x."""
        half = math.ceil(self.m / 2)
        return {"1d": (), "2d": (self.m,), "3d": (2, half), "4d": (2, 1, half)}[self.lead]


WORK = 2**20  # products in one case's base matmul: enough to cross every block size, few enough for many cases
WORK_INTERPRETED = 2**17


def tamed(case: LinearCase, work: int = WORK) -> LinearCase:
    """The case with m, then n, cut until its base product fits the work; a 1-D input has one token."""
    if case.special == "identity":
        return dataclasses.replace(case, k=min(case.k, 64), n=min(case.k, 64), r=min(case.k, 64), bias=False)
    m = 1 if case.lead == "1d" else case.m
    m = min(m, max(1, work // (case.k * case.n))) if m else 0
    n = min(case.n, max(1, work // (case.k * max(m, 1))))
    return dataclasses.replace(case, m=m, n=n)


# Sizes at, below and above the usual block sizes; a size of 1 hides most defects, and is where shrinking ends.
SCALES = (1.0, 2.0, -1.0, 0.5, 4.0)
LINEAR = Space(
    LinearCase,
    tame=tamed,
    m=(1, 3, 17, 33, 64, 65, 100, 129),
    k=(1, 3, 16, 17, 33, 64, 65, 130, 257, 300, 1031),
    n=(1, 3, 16, 17, 33, 64, 65, 129, 260),
    r=(1, 3, 4, 8, 16, 17, 33, 70),
    scale=SCALES,
    bias=(False, True),
    values=("integers", "normal", "cancelling", "positive", "huge-term"),
    training=(True, False),
)


class Operands:
    """Exact operand values of a case, and the tensors holding them inside canary margins.

    Values are float64 arrays of numbers that the operand's dtype represents, so oracle and target see the same.
    """

    def __init__(self, case: LinearCase, device: str = "cpu") -> None:
        self.case, self.device = case, device
        self.dtype = dtype_named(case.dtype)
        self.adapter_dtype = self.dtype if case.adapter == "same" else dtype_named(case.adapter)
        # under autocast the values are numbers of its dtype, and the tensors that hold them of the case's
        self.computed_in = self.dtype if case.autocast == "off" else dtype_named(case.autocast)
        self.scale = case.scale
        self.shape = (*case.leading, case.n)
        values = _integers(case, self.exact_limit) if self.exact else _floats(case)
        kinds = dict.fromkeys(("lora_A", "lora_B"), self.adapter_dtype)
        if case.autocast != "off":
            kinds = dict.fromkeys(values, self.computed_in)
        self.values = {name: rounded(v, kinds.get(name, self.dtype)) for name, v in values.items()}
        if not case.bias:
            del self.values["bias"]

    @property
    def exact(self) -> bool:
        """Whether this is the exact-integer lane, where no order of summation rounds."""
        return self.case.values in ("integers", "cancelling")

    @property
    def exact_limit(self) -> int:
        return min(format_of(d).exact for d in (self.dtype, self.adapter_dtype, self.computed_in))

    @property
    def rounding(self) -> Rounding:
        """How the budget may assume this case is rounded."""
        correlated = "expanded" in (self.case.x, self.case.g)
        if self.case.autocast != "off":
            return Rounding(self.computed_in, self.computed_in, correlated)
        return Rounding(self.dtype, self.adapter_dtype, correlated)

    @property
    def degenerate(self) -> bool:
        """Whether gradients are zero by construction (no tokens, or scale 0): compared exactly, not certified."""
        return self.scale == 0 or math.prod(self.case.leading) == 0

    def rows(self, name: str) -> Array:
        """x or g as a matrix [M, K] or [M, N]."""
        values = self.values[name]
        return values.reshape(math.prod(self.case.leading), values.shape[-1])

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """Each operand as a view inside a larger buffer; made once."""
        case = self.case
        layouts = {"x": case.x, "g": case.g, "weight": case.w, "lora_A": case.ab, "lora_B": case.ab}
        kinds = dict.fromkeys(("lora_A", "lora_B"), self.adapter_dtype)
        return {
            name: place(values, kinds.get(name, self.dtype), layouts.get(name, "packed"), self.device)
            for name, values in self.values.items()
        }

    def tensor(self, name: str) -> torch.Tensor | None:
        """The placed tensor of that name; None for an absent bias."""
        return self.placed[name].tensor if name in self.placed else None


def _floats(case: LinearCase) -> dict[str, Array]:
    """Values of order one, scaled so that base, bias and update all weigh in the output."""
    random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.r])

    def draw(*shape: int) -> Array:
        values = random.standard_normal(shape)
        return np.abs(values) if case.values == "positive" else values

    width = case.k if case.values == "positive" else np.sqrt(case.k)
    rank = case.r if case.values == "positive" else np.sqrt(case.r)
    values = {
        "x": draw(*case.leading, case.k),
        "weight": draw(case.n, case.k) / width,
        "bias": draw(case.n),
        "lora_A": draw(case.r, case.k) / width,
        "lora_B": draw(case.n, case.r) / (rank * max(abs(case.scale), 2**-6)),
        "g": draw(*case.leading, case.n),
    }
    if case.values == "huge-term" and case.leading and values["x"].size:
        # one product of 32 times the others' size: what is cut off or rounded beside it shows
        values["x"][..., case.seed % case.k] *= 32
        values["g"][..., case.seed % case.n] *= 32
    return _specialised(case, _repeated(case, values))


def _specialised(case: LinearCase, values: dict[str, Array]) -> dict[str, Array]:
    """The values with what `special` asks for."""
    x = values["x"].reshape(-1, case.k)
    if case.special in ("nan", "inf"):
        x[case.seed % len(x), case.seed % case.k] = float(case.special)
    elif case.special == "zero-x":
        x[...] = 0
    elif case.special == "zero-B":
        values["lora_B"][...] = 0
    elif case.special == "denormal":
        # some hundred steps of the format: below its smallest normal number, well above its rounding
        x *= (4096 if case.dtype == "float32" else 256) * format_of(dtype_named(case.dtype)).step
    elif case.special == "near-overflow":
        for name in ("weight", "lora_A"):
            values[name] = np.abs(values[name])
        x[:, : case.k // 2], x[:, case.k // 2 :] = np.abs(x[:, : case.k // 2]), -np.abs(x[:, case.k // 2 :])
        largest = format_of(dtype_named(case.dtype)).largest
        x *= 0.7 * largest / _largest_forward(x, values, case.scale)
        values["bias"] *= 0.2 * largest / np.abs(values["bias"]).max()  # else it would be lost beside them
    elif case.special == "overflow-before-scale":
        values["weight"][...] = 0
        update = np.abs(x @ values["lora_A"].T @ values["lora_B"].T).max(initial=1e-9) * abs(case.scale)
        update = max(update, float(np.abs(values["lora_B"]).max()))  # lora_B itself must fit
        values["lora_B"] *= 0.7 * format_of(dtype_named(case.dtype)).largest / update
    elif case.special == "identity":
        values["weight"][...] = 0
        values["lora_A"][...] = values["lora_B"][...] = np.eye(case.k)
    return values


def _repeated(case: LinearCase, values: dict[str, Array]) -> dict[str, Array]:
    """The values with every slice along the first axis equal where the layout is `expanded`."""
    for name, layout in (("x", case.x), ("g", case.g)):
        if layout == "expanded" and case.leading:
            values[name][...] = values[name][:1]
    return values


def _integers(case: LinearCase, limit: int) -> dict[str, Array]:
    """Small integers, thinned until every intermediate of every plan is an exact integer of the dtype."""
    fraction = max(1.0, 1 / (min(abs(case.scale), 1.0) or 1.0))  # a scale of 1/4 leaves quarters
    values: dict[str, Array] = {}
    for attempt in range(ATTEMPTS):
        size = 1.0
        while True:
            random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.r, attempt])
            values = _signs(case, size, random)
            if case.values == "cancelling":
                values = _cancelling(case, values, max(1, int(min(math.sqrt(limit), LARGEST) * size**3)), random)
            values = _specialised(case, _repeated(case, values))
            largest, decides = _weighed(values, case.scale)
            if largest * fraction <= limit or size < 1e-3:
                break
            size *= 0.7
        if decides or case.special != "none":
            break  # few and small integers may cancel to a term of nothing but zeros: then draw again
    return values


ATTEMPTS = 16
LARGEST = 31  # its square times any K or M is exact in float32


def _signs(case: LinearCase, density: float, random: np.random.Generator) -> dict[str, Array]:
    """Operands of -1, 0 and 1, the fewer zeros the denser."""

    def draw(*shape: int, keep: float = density) -> Array:
        signs = random.integers(0, 2, shape) * 2.0 - 1
        return np.asarray(signs * (random.random(shape) < keep), dtype=np.float64)

    return {
        "x": draw(*case.leading, case.k, keep=max(density, 0.5)),
        "weight": draw(case.n, case.k) * (2 if case.k < 16 else 1),
        "bias": draw(case.n, keep=1.0) * 3,
        "lora_A": draw(case.r, case.k, keep=density / 2 if case.k > 16 else density),
        "lora_B": draw(case.n, case.r, keep=density / 2 if case.r > 4 else density),
        "g": draw(*case.leading, case.n, keep=max(density, 0.5)),
    }


def _cancelling(case: LinearCase, sparse: dict[str, Array], most: int, random: np.random.Generator) -> dict[str, Array]:
    """Operands whose sums over K, N and M grow to half-way and shrink back to what the sparse part adds.

    x = [p, -p] and g = [q, -q], and W, A and B repeat one block along K and N, plus the sparse integers; the second
    half of the tokens is the first with g negated, but for one or two tokens that have no partner.

    Args:
        most: the largest number in x, g and W: with it partial sums leave a 16-bit accumulator from K = 64 on.
    """

    def paired(shape: tuple[int, ...], signs: tuple[int, int], largest: int) -> Array:
        half = shape[-1] // 2
        block = random.integers(1, largest + 1, (*shape[:-1], half)).astype(np.float64)
        odd = np.ones((*shape[:-1], shape[-1] - 2 * half))
        return np.concatenate([signs[0] * block, signs[1] * block, odd], -1)

    lead, k, n, r = case.leading, case.k, case.n, case.r
    few_most = min(most, 2)
    down = paired((r, k), (1, 1), 1)
    up = paired((r, n), (1, 1), 1).T
    rows = paired((n // 2, k), (1, 1), most)
    weight = np.concatenate([rows, rows, np.ones((n - 2 * (n // 2), k))])
    few = {}
    for name in ("weight", "lora_A", "lora_B"):
        # enough of them in every row and column that each sum has something left
        share = max(0.1, 8 / min(sparse[name].shape))
        few[name] = sparse[name] * (random.random(sparse[name].shape) < share)
    tokens = math.prod(lead)
    partners = (tokens - 1) // 2 if tokens > 2 else 0
    x, g = paired((tokens, k), (1, -1), most), paired((tokens, n), (1, -1), most)
    x[partners : 2 * partners], g[partners : 2 * partners] = x[:partners], -g[:partners]
    alone = slice(2 * partners, tokens if partners else 0)
    x[alone], g[alone] = np.clip(x[alone], -few_most, few_most), np.clip(g[alone], -few_most, few_most)
    return {
        **sparse,
        "x": x.reshape(*lead, k),
        "g": g.reshape(*lead, n),
        "weight": weight + few["weight"],
        "lora_A": down * (r <= 8) + few["lora_A"],  # for larger ranks B A would leave the exact range
        "lora_B": up * (r <= 8) + few["lora_B"],
    }


def _largest_forward(x: Array, values: dict[str, Array], scale: float) -> float:
    """The largest magnitude among the operands and intermediates of the forward pass."""
    middle, base = x @ values["lora_A"].T, x @ values["weight"].T
    update = middle @ values["lora_B"].T
    stored = (x, x * scale, middle, middle * scale, update, update * scale, base, base + scale * update)
    return max(float(np.abs(v).max(initial=1e-9)) for v in stored)


def _weighed(values: dict[str, Array], scale: float) -> tuple[float, bool]:
    """The largest magnitude among what any plan may store, and whether every term of every result shows."""
    x = values["x"].reshape(-1, values["x"].shape[-1])
    g = values["g"].reshape(-1, values["g"].shape[-1])
    weight, down, up = values["weight"], values["lora_A"], values["lora_B"]
    joined, outer = up @ down, g.T @ x
    s, t, base = x @ down.T, g @ up, x @ weight.T
    back, part, rest = t @ down, s @ up.T, g @ weight
    d_up, d_down = outer @ down.T, up.T @ outer
    update = scale * part
    whole = (base, base + values["bias"], base + update, base + values["bias"] + update, weight + scale * joined)
    backward = (rest, rest + scale * back, g.sum(0), weight, x, g)
    grown = max(1.0, abs(scale))
    sizes = [grown * float(np.abs(v).max(initial=2.0)) for v in (joined, outer, s, t, part, back, d_up, d_down)]
    sizes += [float(np.abs(v).max(initial=0.0)) for v in (*whole, *backward)]
    terms = (base, part, rest, back, d_up, d_down, base + update, rest + scale * back)
    return max(sizes), not x.size or all(v.any() for v in terms)
