"""The numbers of a grouped layer's operands, drawn from a case: exact integers, or values of order one."""

from __future__ import annotations

import math

import numpy as np

from conformance.cases.operand_values import largest_forward, weighed
from conformance.cases.reproducer_marks import draws_values
from conformance.clauses.experts.case import GroupedCase, routes
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.formats import Array, dtype_named, format_of

ATTEMPTS = 16


def shapes(case: GroupedCase) -> dict[str, tuple[int, ...]]:
    """The shape of every operand and of the upstream gradient."""
    found: dict[str, tuple[int, ...]] = {"x": (*case.leading, case.k)}
    if case.base:
        found["weight"] = (case.experts, case.n, case.k)
    if case.bias:
        found["bias"] = (case.experts, case.n)
    down, up = (case.experts, case.r, case.k), (case.experts, case.n, case.r)
    return found | {"lora_A": down, "lora_B": up, "g": (*case.leading, case.n)}


@draws_values
def drawn(case: GroupedCase, limit: int) -> dict[str, Array]:
    """Every operand by name; integers are thinned out until each sum that a plan may store is at most `limit`."""
    if case.values != "integers":
        return _repeated(case, _floats(case))
    for attempt in range(ATTEMPTS):
        size = 1.0
        while True:
            random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.r, case.experts, attempt])
            values = _repeated(case, _signs(case, size, random))
            largest, decides = _weight(case, values, limit)
            if largest <= limit or size < 0.02:
                break
            size *= 0.7
        if decides and largest <= limit:
            return values
    raise Inconclusive("no integers so small that every plan is exact and every term shows")


def _floats(case: GroupedCase) -> dict[str, Array]:
    random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.r, case.experts])
    sizes = {
        "weight": 1 / math.sqrt(case.k),
        "lora_A": 1 / math.sqrt(case.k),
        "lora_B": 1 / (math.sqrt(case.r) * abs(case.scale)),
    }
    values = {name: random.standard_normal(shape) * sizes.get(name, 1.0) for name, shape in shapes(case).items()}
    if case.special == "probe":
        values["lora_A"][...] = values["lora_B"][...] = np.eye(case.k)
    elif case.special in ("nan", "inf"):
        rows = values["x"].reshape(-1, case.k)
        rows[case.seed % len(rows), case.seed % case.k] = float(case.special)
    elif case.special == "near-overflow":
        _enlarge(case, values)
    elif case.special == "overflow-before-scale":
        _enlarge_updates(case, values)
    elif case.special == "nan-absent":
        index = routes(case)
        values["x"].reshape(-1, case.k)[(index < 0) | (index >= case.experts)] = math.nan if case.seed % 2 else math.inf
    return values


def _enlarge(case: GroupedCase, values: dict[str, Array]) -> None:
    """Scale x and the biases until the largest result of an expert's rows comes near the largest number."""
    for name in ("weight", "lora_A"):
        if name in values:
            values[name] = np.abs(values[name])
    x, index, half = values["x"].reshape(-1, case.k), routes(case), case.k // 2
    x[:, :half], x[:, half:] = np.abs(x[:, :half]), -np.abs(x[:, half:])
    largest = format_of(dtype_named(case.dtype)).largest
    for e in np.unique(index[(index >= 0) & (index < case.experts)]):
        own = {name: values[name][e] for name in ("weight", "lora_A", "lora_B")}
        x[index == e] *= 0.7 * largest / largest_forward(x[index == e], own, case.scale, 1.0)
    if "bias" in values:
        values["bias"] *= 0.2 * largest / np.abs(values["bias"]).max()


def _enlarge_updates(case: GroupedCase, values: dict[str, Array]) -> None:
    """Scale each B_e until the largest scaled update of its rows comes near the largest number; W becomes zero."""
    x, index = values["x"].reshape(-1, case.k), routes(case)
    values["weight"][...] = 0
    largest = 0.7 * format_of(dtype_named(case.dtype)).largest
    for e in np.unique(index[(index >= 0) & (index < case.experts)]):
        up = values["lora_B"][e]
        update = np.abs(x[index == e] @ values["lora_A"][e].T @ up.T).max(initial=1e-9) * abs(case.scale)
        up *= largest / max(update, float(np.abs(up).max()))  # B_e itself must fit the dtype


def _repeated(case: GroupedCase, values: dict[str, Array]) -> dict[str, Array]:
    """The values with every slice along the first axis equal where the layout is `expanded`."""
    for name, layout in (("x", case.x), ("g", case.g)):
        if layout == "expanded" and case.leading:
            values[name][...] = values[name][:1]
    return values


def _signs(case: GroupedCase, density: float, random: np.random.Generator) -> dict[str, Array]:
    """Operands of -1, 0 and 1 with the given density of nonzeros, and a handful of those in each sum."""
    values = {}
    for name, shape in shapes(case).items():
        few = {"weight": 4.0, "lora_A": 2.0, "lora_B": 2.0}.get(name)
        keep = max(density, 0.5) if few is None else density * min(1.0, few / shape[-1])
        signs = random.integers(0, 2, shape) * 2.0 - 1
        values[name] = np.asarray(signs * (random.random(shape) < keep), dtype=np.float64)
    return values


def _weight(case: GroupedCase, values: dict[str, Array], limit: int) -> tuple[float, bool]:
    """The largest magnitude that a plan may store, and whether every term shows in the rows of some expert."""
    index, fraction = routes(case), max(1.0, 1 / abs(case.scale))
    x, g = values["x"].reshape(len(index), case.k), values["g"].reshape(len(index), case.n)
    largest, decides = 0.0, not len(index) or bool(((index < 0) | (index >= case.experts)).all())
    for e in range(case.experts):
        own = index == e
        if not own.any():
            continue
        whole = {"x": x[own], "g": g[own], "lora_A": values["lora_A"][e], "lora_B": values["lora_B"][e]}
        whole["weight"] = values["weight"][e] if case.base else np.zeros((case.n, case.k))
        whole["bias"] = values["bias"][e] if case.bias else np.zeros(case.n)
        found, shows = weighed(whole, case.scale, limit / fraction)
        largest, decides = max(largest, found * fraction), decides or shows or not case.base
    return largest, decides
