"""The numbers of a fused block's operands, drawn from a case: exact integers, or values of order one."""

from __future__ import annotations

import math

import numpy as np

from conformance.cases.operand_values import weighed
from conformance.cases.reproducer_marks import draws_values
from conformance.clauses.fused.case import FusedCase
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.formats import Array

ATTEMPTS = 16
SCALES = (1.0, 2.0, -1.0)  # scales of the three projections, in units of the case's


def names(case: FusedCase, block: str) -> tuple[str, ...]:
    """The projections of `lora_qkv` or `lora_mlp`."""
    if block == "lora_qkv":
        return ("q", "k", "v")
    return ("gate", "up", "down") if case.gated else ("up", "down")


def outputs(case: FusedCase, block: str) -> dict[str, int]:
    """The features of each output."""
    return {"q": case.n, "k": case.o, "v": case.o} if block == "lora_qkv" else {"y": case.o}


@draws_values
def drawn(case: FusedCase, block: str, limit: int) -> dict[str, Array]:
    """Every operand and upstream gradient by name: `x`, `q.weight`, `q.lora_A`, `g of q`.

    Integers are thinned out until every number that an implementation may store is an integer of at most `limit`.
    """
    if case.values != "integers":
        return _floats(case, block)
    values: dict[str, Array] = {}
    for attempt in range(ATTEMPTS):
        size = 1.0
        while True:
            random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.r, attempt])
            values = _repeated(case, block, _signs(case, block, size, random))
            largest, decides = _weight(case, block, values, limit)
            if largest <= limit or size < 0.02:
                break
            size *= 0.8
        if decides and largest <= limit:
            return values
    raise Inconclusive("no integers so small that every plan is exact and every term shows")


def _shapes(case: FusedCase, block: str) -> dict[str, tuple[int, ...]]:
    wide = {"q": (case.n, case.k), "k": (case.o, case.k), "v": (case.o, case.k)}
    wide |= {"gate": (case.n, case.k), "up": (case.n, case.k), "down": (case.o, case.n)}
    shapes: dict[str, tuple[int, ...]] = {"x": (*case.leading, case.k)}
    for place, name in enumerate(names(case, block)):
        n, k = wide[name]
        r = case.r + (place if case.ranks == "different" else 0)
        shapes |= {f"{name}.weight": (n, k), f"{name}.lora_A": (r, k), f"{name}.lora_B": (n, r)}
        if case.bias == "all" or (case.bias == "second" and place == 1):
            shapes[f"{name}.bias"] = (n,)
        if case.adapters not in ("all", ("first", "second", "third")[place]):
            del shapes[f"{name}.lora_A"], shapes[f"{name}.lora_B"]
    return shapes | {f"g of {name}": (*case.leading, width) for name, width in outputs(case, block).items()}


def scale_of(case: FusedCase, block: str, name: str) -> float:
    """The scale of a projection: no two are equal."""
    return case.scale * SCALES[names(case, block).index(name)]


def _floats(case: FusedCase, block: str) -> dict[str, Array]:
    """Values of order one, scaled so that base, bias and update all weigh in each projection's output."""
    random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.r])
    values: dict[str, Array] = {}
    for name, shape in _shapes(case, block).items():
        projection, _, operand = name.rpartition(".")
        size = 1.0
        if operand in ("weight", "lora_A"):
            size = 1 / math.sqrt(shape[1])
        elif operand == "lora_B":
            size = 1 / (math.sqrt(shape[1]) * abs(scale_of(case, block, projection)))
        values[name] = random.standard_normal(shape) * size
    if case.special in ("saturated", "steep"):
        # far from 0 on both sides, by amounts so different that weight and adapter still matter in 16 bits
        first = names(case, block)[0]
        for operand in ("weight", "lora_B"):
            values[f"{first}.{operand}"] *= 20
        if case.special == "saturated":
            values[f"{first}.bias"] = np.where(np.arange(case.n) % 2, -128.0, 128.0)
    elif case.special in ("nan", "inf"):
        x = values["x"].reshape(-1, case.k)
        x[case.seed % len(x), case.seed % case.k] = float(case.special)
    return _repeated(case, block, values)


def _repeated(case: FusedCase, block: str, values: dict[str, Array]) -> dict[str, Array]:
    """The values with every slice along the first axis equal where the layout is `expanded`."""
    upstream = [f"g of {name}" for name in outputs(case, block)] if case.g == "expanded" else []
    for name in (*upstream, *(["x"] if case.x == "expanded" else [])):
        if case.leading:
            values[name][...] = values[name][:1]
    return values


def _signs(case: FusedCase, block: str, density: float, random: np.random.Generator) -> dict[str, Array]:
    """Operands of -1, 0 and 1 with the given density of nonzeros, and a handful of those in each sum."""
    values = {}
    for name, shape in _shapes(case, block).items():
        operand = name.rpartition(".")[2]
        few = {"weight": 4.0, "lora_A": 2.0, "lora_B": 2.0}.get(operand)
        keep = max(density, 0.5) if few is None else density * min(1.0, few / shape[-1])
        keep = 0.5 * density if name.startswith("g of") else keep
        signs = random.integers(0, 2, shape) * 2.0 - 1
        values[name] = np.asarray(signs * (random.random(shape) < keep), dtype=np.float64)
    return values


def _weight(case: FusedCase, block: str, values: dict[str, Array], limit: float) -> tuple[float, bool]:
    """The largest magnitude that an implementation may store, and whether every term matters in every result.

    Beyond the limit neither answer is exact.
    """
    x = values["x"].reshape(-1, case.k)
    gs = [values[f"g of {name}"].reshape(len(x), width) for name, width in outputs(case, block).items()]
    inputs, upstream = [x] * 3, gs
    sizes = [0.0]
    if block == "lora_mlp":
        lifts = [_product(case, block, values, name, x) for name in names(case, block)[:-1]]
        slopes, h = 2 * np.maximum(lifts[0], 0), np.maximum(lifts[0], 0) ** 2
        d_h = gs[0] @ _merged(case, block, values, "down")
        inner = [d_h * slopes]
        sizes += [np.abs(v).max(initial=0.0) for v in (h, slopes, d_h, d_h * slopes)]
        if case.gated:
            up = lifts[1]
            inner = [d_h * up * slopes, d_h * h]
            h = h * up
            sizes += [np.abs(v).max(initial=0.0) for v in (h, up * slopes, d_h * up, *inner)]
        inputs, upstream = [*([x] * len(lifts)), h], [*inner, gs[0]]
        if max(sizes) > limit:
            return float(max(sizes)), False
    decides, back = True, np.zeros(1)
    for name, rows, g in zip(names(case, block), inputs, upstream, strict=True):
        whole = _whole(values, name, g.shape[1], rows.shape[1])
        largest, shows = weighed({**whole, "x": rows, "g": g}, scale_of(case, block, name), limit)
        sizes.append(largest)
        if largest > limit:
            return float(largest), False
        decides = decides and (shows or f"{name}.lora_A" not in values)
        if rows is x:
            update = abs(scale_of(case, block, name)) * np.abs(g @ whole["lora_B"] @ whole["lora_A"])
            back = back + np.abs(g @ whole["weight"]) + update
    sizes.append(float(back.max(initial=0.0)))
    return float(max(sizes)), decides


def _whole(values: dict[str, Array], name: str, n: int, k: int) -> dict[str, Array]:
    """A projection's operands, with zeros for a bias or adapter that it does not have."""
    absent = {"bias": (n,), "lora_A": (1, k), "lora_B": (n, 1), "weight": (n, k)}
    return {operand: values.get(f"{name}.{operand}", np.zeros(shape)) for operand, shape in absent.items()}


def _merged(case: FusedCase, block: str, values: dict[str, Array], name: str) -> Array:
    weight = values[f"{name}.weight"]
    if f"{name}.lora_A" not in values:
        return weight
    return weight + scale_of(case, block, name) * values[f"{name}.lora_B"] @ values[f"{name}.lora_A"]


def _product(case: FusedCase, block: str, values: dict[str, Array], name: str, x: Array) -> Array:
    product: Array = x @ _merged(case, block, values, name).T
    return product + values.get(f"{name}.bias", np.zeros(1))
