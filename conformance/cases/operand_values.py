"""The element values of a LoRA linear layer's operands, drawn from a case: exact integers, or values of order one."""

from __future__ import annotations

import math

import numpy as np

from conformance.cases.linear_case import LinearCase
from conformance.cases.reproducer_marks import draws_values
from conformance.numerics.formats import Array, dtype_named, format_of


@draws_values
def floats(case: LinearCase, alpha: float = 1.0) -> dict[str, Array]:
    """Values of order one, scaled so that base, bias and update have similar magnitudes in the output.

    Args:
        alpha: a factor by which a plan may multiply (x Aᵀ) Bᵀ before it divides by the rank.
    """
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
        # one product is 32 times as large as the others: it shows truncation and coarse rounding of the rest
        values["x"][..., case.seed % case.k] *= 32
        values["g"][..., case.seed % case.n] *= 32
    return _specialised(case, _repeated(case, values), alpha)


def _specialised(case: LinearCase, values: dict[str, Array], alpha: float) -> dict[str, Array]:
    """The values, changed as the case's `special` field says."""
    x = values["x"].reshape(-1, case.k)
    if case.special in ("nan", "inf"):
        x[case.seed % len(x), case.seed % case.k] = float(case.special)
    elif case.special == "zero-x":
        x[...] = 0
    elif case.special == "zero-B":
        values["lora_B"][...] = 0
    elif case.special == "denormal":
        # some hundred steps of the format: below the smallest normal number, but far above the rounding error
        x *= (4096 if case.dtype == "float32" else 256) * format_of(dtype_named(case.dtype)).step
    elif case.special == "near-overflow":
        for name in ("weight", "lora_A"):
            values[name] = np.abs(values[name])
        x[:, : case.k // 2], x[:, case.k // 2 :] = np.abs(x[:, : case.k // 2]), -np.abs(x[:, case.k // 2 :])
        largest = format_of(dtype_named(case.dtype)).largest
        x *= 0.7 * largest / largest_forward(x, values, case.scale, alpha)
        values["bias"] *= 0.2 * largest / np.abs(values["bias"]).max()  # a bias of order one would be lost in rounding
    elif case.special == "overflow-before-scale":
        values["weight"][...] = 0
        update = np.abs(x @ values["lora_A"].T @ values["lora_B"].T).max(initial=1e-9) * abs(case.scale)
        update = max(update, float(np.abs(values["lora_B"]).max()))  # lora_B itself must fit the dtype
        values["lora_B"] *= 0.7 * format_of(dtype_named(case.dtype)).largest / update
    elif case.special == "identity":
        values["weight"][...] = 0
        values["lora_A"][...] = values["lora_B"][...] = np.eye(case.k)
    return values


def _repeated(case: LinearCase, values: dict[str, Array]) -> dict[str, Array]:
    """The values, with equal slices along the first axis for operands whose layout is `expanded`."""
    for name, layout in (("x", case.x), ("g", case.g)):
        if layout == "expanded" and case.leading:
            values[name][...] = values[name][:1]
    return values


@draws_values
def integers(case: LinearCase, limit: int, alpha: float = 1.0) -> dict[str, Array]:
    """Small integers, made sparser until every intermediate of every plan is at most `limit`, hence exact.

    Args:
        alpha: a factor by which a plan may multiply (x Aᵀ) Bᵀ before it divides by the rank.
    """
    odd = _odd_part(alpha)  # a power of two rounds nothing
    fraction = max(1.0, 1 / (min(abs(case.scale), 1.0) or 1.0))  # a scale of 1/4 gives multiples of 1/4
    values: dict[str, Array] = {}
    for attempt in range(ATTEMPTS):
        size = 1.0
        while True:
            random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.r, attempt])
            values = _signs(case, size, random)
            if case.values == "cancelling":
                values = _cancelling(case, values, max(1, int(min(math.sqrt(limit), LARGEST) * size**3)), random)
            values = _specialised(case, _repeated(case, values), alpha)
            last = size < 1e-3
            largest, decides = weighed(values, case.scale, math.inf if last else limit / fraction)
            if 1 < odd <= limit and largest * fraction <= limit:
                update = values["x"] @ values["lora_A"].T @ values["lora_B"].T
                largest = max(largest, odd * _largest(update, 0.0) / fraction)
            if largest * fraction <= limit or last:
                break
            size *= 0.7
        if decides or case.special != "none":
            break  # sparse integers may cancel to a term that is all zeros; the loop then draws again
    return values


def _odd_part(value: float) -> int:
    """The odd part of the numerator of a number."""
    numerator = abs(value.as_integer_ratio()[0]) or 1
    return numerator // (numerator & -numerator)


ATTEMPTS = 16
LARGEST = 31  # its square times any K or M is exact in float32


def _signs(case: LinearCase, density: float, random: np.random.Generator) -> dict[str, Array]:
    """Operands of -1, 0 and 1; `density` is the share of elements that are not zero."""

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
    """Operands whose partial sums over K, N and M grow for half of the terms and then cancel, except the sparse part.

    x = [p, -p] and g = [q, -q]. W, A and B repeat one block along K and N, plus the sparse integers. The second half
    of the tokens repeats the first with g negated; one or two tokens have no partner.

    Args:
        most: the largest element of x, g and W. With 31, partial sums exceed a 16-bit accumulator for K ≥ 64.
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
        # each row and column keeps enough elements for nonzero sums
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
        "lora_A": down * (r <= 8) + few["lora_A"],  # B A would exceed the exact range at larger ranks
        "lora_B": up * (r <= 8) + few["lora_B"],
    }


def largest_forward(x: Array, values: dict[str, Array], scale: float, alpha: float) -> float:
    """The largest magnitude among the operands and intermediates of the forward pass."""
    middle, base = x @ values["lora_A"].T, x @ values["weight"].T
    update = middle @ values["lora_B"].T
    updates = (update, update * scale, update * alpha)
    stored = (x, x * scale, middle, middle * scale, *updates, base, base + scale * update)
    return max(float(np.abs(v).max(initial=1e-9)) for v in stored)


def weighed(values: dict[str, Array], scale: float, limit: float = math.inf) -> tuple[float, bool]:
    """The largest magnitude that any plan may store, and whether every term of every result is nonzero.

    Args:
        values: integers, or other numbers whose sums are exact.
        limit: if a product exceeds this magnitude, the rest is skipped and the second result is False.
    """
    x = values["x"].reshape(-1, values["x"].shape[-1])
    g = values["g"].reshape(-1, values["g"].shape[-1])
    weight, down, up = values["weight"], values["lora_A"], values["lora_B"]
    joined, s, t = up @ down, x @ down.T, g @ up
    back, part = t @ down, s @ up.T
    d_up, d_down = g.T @ s, t.T @ x  # exact, so equal to the same products by way of gᵀ x
    grown = max(1.0, abs(scale))
    largest = max(grown * _largest(v, 2.0) for v in (joined, s, t, part, back, d_up, d_down))
    if largest > limit:
        return largest, False
    outer, base, rest = g.T @ x, x @ weight.T, g @ weight
    update = scale * part
    with_update, with_back = base + update, rest + scale * back
    whole = (base, base + values["bias"], with_update, with_update + values["bias"], weight + scale * joined)
    backward = (rest, with_back, g.sum(0), weight, x, g)
    largest = max(largest, grown * _largest(outer, 2.0), *(_largest(v, 0.0) for v in (*whole, *backward)))
    terms = (base, part, rest, back, d_up, d_down, with_update, with_back)
    return largest, not x.size or all(v.any() for v in terms)


def _largest(found: Array, least: float) -> float:
    """The largest magnitude, at least `least`."""
    return max(float(found.max(initial=least)), -float(found.min(initial=-least)))
