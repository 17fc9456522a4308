"""Keys for each expert in a file, ``experts.0.gate_proj``, as if experts were linear modules: written and fused."""

import difflib
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..experts_module import expected_projections, weight_of
from .expert_tensors import ExpertTensors, Pair, both

PACKED = "packed"
KEYS = {"gate_up_down": ("gate_proj", "up_proj", "down_proj"), "w1_w3_w2": ("w1", "w3", "w2")}
Options = tuple[int, int | float]  # rank and alpha


def check_expert_keys(expert_keys: object) -> None:
    """Refuse a value of `save_adapter`'s `expert_keys` that names no keys, with the nearest that does."""
    accepted = (PACKED, *KEYS)
    if expert_keys not in accepted:
        near = difflib.get_close_matches(str(expert_keys), accepted, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"expert_keys = {expert_keys!r}: expected one of {', '.join(accepted)}{hint}")


def keys_of(module: Any, projection: str, expert_keys: str) -> tuple[str, ...]:
    """The keys of one projection: gate and up for a gated one."""
    gate, up, down = KEYS[expert_keys]
    first, _ = expected_projections(module)
    if projection != first:
        return (down,)
    if first == "gate_up_proj":
        return gate, up
    return ("up_proj" if expert_keys == "gate_up_down" else gate,)


def tensors_of_each(name: str, module: Any, expert_keys: str) -> dict[str, Tensor]:
    """A [r, K] and B [N, r] of each expert: gate and up have the same A, and each its rows of B."""
    found = {}
    for projection, A in module.lora_A.items():
        keys, B = keys_of(module, projection, expert_keys), module.lora_B[projection]
        halves = (B,) if len(keys) == 1 else B.chunk(2, 1) if module.is_concatenated else (B[:, ::2], B[:, 1::2])
        for key, half in zip(keys, halves, strict=True):
            for e in range(len(A)):
                found[f"{name}.{e}.{key}.lora_A.weight"] = A[e]
                found[f"{name}.{e}.{key}.lora_B.weight"] = half[e]
    return found


def pattern_of(name: str, keys: tuple[str, ...]) -> str:
    """The regular expression that matches these keys of every expert of a module, by their full names."""
    last = f"({'|'.join(keys)})" if len(keys) > 1 else keys[0]
    return rf"{re.escape(name)}\.\d+\.{last}"


def fused(
    name: str, module: Any, found: ExpertTensors, of_layer: Callable[[str], Options], use_rslora: bool
) -> tuple[dict[str, Pair], dict[str, Options]]:
    """A [E, r, K], B [E, N, r] and the options of each projection from keys for each expert.

    Where gate and up have the same A, they fuse at its rank; otherwise A holds both, and B is block-diagonal, with the
    alpha that leaves the scale.

    Args:
        of_layer: the rank and alpha by a key's full name.
    Raises:
        ValueError: naming an expert or a half that is missing, or ranks or scales that differ.
    """
    first, down = expected_projections(module)
    names = {key for _, key in found.of_experts}
    pairs: dict[str, Pair] = {}
    options: dict[str, Options] = {}

    def stacked(*keys: str, of: str = first, parts: int = 1) -> tuple[Pair, Options]:
        experts, n, k = weight_of(module, of).shape
        return _stacked(name, found, (experts, n // parts, k), keys, of_layer)

    if names & {"down_proj", "w2"}:
        pairs[down], options[down] = stacked("down_proj", "w2", of=down)
    if first == "up_proj":
        if names & {"up_proj", "w1"}:
            pairs[first], options[first] = stacked("up_proj", "w1")
        return pairs, options
    if names & {"gate_proj", "w1", "up_proj", "w3"}:
        gate, up = stacked("gate_proj", "w1", parts=2), stacked("up_proj", "w3", parts=2)
        pairs[first], options[first] = _joined(name, gate, up, module.is_concatenated, use_rslora)
    return pairs, options


def _joined(
    name: str, gate: tuple[Pair, Options], up: tuple[Pair, Options], concatenated: bool, use_rslora: bool
) -> tuple[Pair, Options]:
    """The adapter of gate and up together."""
    ((A, B_gate), (rank, alpha)), ((other, B_up), (up_rank, _)) = gate, up
    scales = [a / (math.sqrt(r) if use_rslora else r) for r, a in (gate[1], up[1])]
    if not math.isclose(*scales, rel_tol=1e-12):
        raise ValueError(f"{name}: gate has the scale {scales[0]:.6g} and up {scales[1]:.6g}: expected one scale")
    if not torch.equal(A, other):
        A = torch.cat([A, other], 1)
        B_gate = torch.cat([B_gate, B_gate.new_zeros(*B_gate.shape[:2], B_up.shape[2])], 2)
        B_up = torch.cat([B_up.new_zeros(*B_up.shape[:2], B_gate.shape[2] - B_up.shape[2]), B_up], 2)
        more = (rank + up_rank) / rank
        alpha = alpha * (math.sqrt(more) if use_rslora else more)
        rank, alpha = rank + up_rank, int(alpha) if float(alpha).is_integer() else alpha
    B = torch.cat([B_gate, B_up], 1) if concatenated else torch.stack([B_gate, B_up], 2).flatten(1, 2)
    return (A, B), (rank, alpha)


def _stacked(
    name: str,
    found: ExpertTensors,
    shape: tuple[int, int, int],
    keys: tuple[str, ...],
    of_layer: Callable[[str], Options],
) -> tuple[Pair, Options]:
    """A, B and the options of one projection of all experts, stacked; `shape` is that of its weights [E, N, K]."""
    experts, n, k = shape
    As, Bs, options = [], [], {}
    beyond = sorted(e for e, key in found.of_experts if key in keys and e >= experts)
    if beyond:
        raise ValueError(f"{name} has tensors of expert {beyond[0]}: expected experts 0 to {experts - 1}")
    for e in range(experts):
        key = next((key for key in keys if (e, key) in found.of_experts), None)
        if key is None:
            raise ValueError(f"no tensors {name}.{e}.{' or '.join(keys)}: expected those of all {experts} experts")
        full = f"{name}.{e}.{key}"
        A, B = both(f"{full}.", found.of_experts[e, key])
        options[full] = rank, _ = of_layer(full)
        if (list(A.shape), list(B.shape)) != ([rank, k], [n, rank]):
            raise ValueError(
                f"{full} has A {list(A.shape)} and B {list(B.shape)}: expected {[rank, k]} and {[n, rank]}, with "
                f"r = {rank}"
            )
        As.append(A)
        Bs.append(B)
    first, one = next(iter(options.items()))
    for full, other in options.items():
        if other != one:
            raise ValueError(f"{first} has the rank and alpha {one} and {full} has {other}: expected the same")
    return (torch.stack(As), torch.stack(Bs)), one
