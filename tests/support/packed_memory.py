"""A table of the memory between the passes of layers on a packed base: `python -m tests.support.packed_memory`.

Three ways of looking for tensors of W's size beyond the storage: the tensors that autograd saves, the attributes of the
graph's nodes and of the layer, and the memory that several layers take together. Each way misses what another sees, as
the last three rows show, whose layers keep Ŵ on purpose. PEFT is left out where bitsandbytes is not installed.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import optimized
import reference
from conformance.clauses.quantised.held_tensors import memory_of, nodes_of, owned, tensors_in
from conformance.isolation.allocated_memory import allocated
from tests.baselines.quantised import target_of
from tests.known_bad.quantised.memory import CACHE, CachesByIdentity, KeepsTheWeightInTheNode, KeepsTheWeightOfFLinear

SIZE, ROWS, RANK, LAYERS = 1024, 8, 16, 8
KEEPERS = {
    "keeps Ŵ for F.linear": KeepsTheWeightOfFLinear,
    "keeps Ŵ on its node": KeepsTheWeightInTheNode,
    "keeps Ŵ in a cache": CachesByIdentity,
}


@dataclass(frozen=True)
class Kept:
    """The bytes of one layer between the passes, without x, y, the adapter and the storage.

    Attributes:
        saved: of the tensors that autograd saves.   reached: of those that the graph's nodes and the layer refer to.
        resident: of what several layers take together, divided by their number.
        storage: bytes of the packed weight.
    """

    saved: int
    reached: int
    resident: int
    storage: int


def targets() -> Iterator[tuple[str, Any]]:
    """The name and the target of each row; ImportError in place of the target of a library that is not installed."""
    yield "reference", reference
    yield "optimized", optimized
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft = importlib.import_module("conformance.targets.peft_bitsandbytes")
        yield "PEFT on bitsandbytes", peft
    except ImportError as error:
        yield "PEFT on bitsandbytes", error
    yield from ((name, target_of(kind)()) for name, kind in KEEPERS.items())


def kept(target: Any, size: int = SIZE, base: str = "nf4") -> Kept:
    """What a target's layer [size, size] keeps between the passes."""
    CACHE.clear()
    x = torch.randn(ROWS, size).requires_grad_()
    _adapted(target, size, base)(x).sum().backward()  # with it libraries allocate what they keep for later calls
    storage, saved, reached = _of_one(target, size, base, x)
    found = Kept(saved, reached, _resident(target, size, base, x), storage)
    CACHE.clear()
    return found


def _of_one(target: Any, size: int, base: str, x: Tensor) -> tuple[int, int, int]:
    """The bytes of one layer's storage, of what autograd saves, and of what the graph and the layer refer to."""
    layer = _adapted(target, size, base)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    by_autograd = _beyond(target, layer, x, y, saved)
    y = layer(x)
    held = tensors_in(*(getattr(node, "__dict__", {}) for node in nodes_of(y)), vars(layer))
    reached = _beyond(target, layer, x, y, held)
    storage = sum(tensor.nbytes for tensor in target.packed_fields(layer)["fields"].values())
    return storage, by_autograd, reached


def _adapted(target: Any, size: int, base: str) -> nn.Module:
    packed = target.packed_linear(nn.Linear(size, size).requires_grad_(False), base)
    layer: nn.Module = target.patch_linear_module(packed, RANK, 2 * RANK, lora_dtype=torch.float32)
    return layer


def _beyond(target: Any, layer: nn.Module, x: Tensor, y: Tensor, tensors: Iterable[Tensor]) -> int:
    own = owned(target, layer, x, y)
    return sum(size for address, (size, _) in memory_of(tensors).items() if address not in own)


def _resident(target: Any, size: int, base: str, x: Tensor) -> int:
    CACHE.clear()
    gc.collect()
    before = allocated()
    layers = [_adapted(target, size, base) for _ in range(LAYERS)]
    outputs = [layer(x) for layer in layers]
    gc.collect()
    after = allocated()
    own = [owned(target, layer, y) for layer, y in zip(layers, outputs, strict=True)]
    return (after - before - sum(size for each in own for size, _ in each.values())) // LAYERS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=SIZE, help=f"features in and out (default {SIZE})")
    parser.add_argument("--base", default="nf4", help="format of the packed weight (default nf4)")
    options = parser.parse_args()
    weight = 4 * options.size**2
    print(
        f"{options.base}, {options.size} features in and out, rank {RANK}, {ROWS} rows; Ŵ in float32 is {weight:,} B\n"
    )
    print("| layer | storage | saved tensors | graph and layer | resident, each of several |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, target in targets():
        if isinstance(target, ImportError):
            print(f"| {name} | not installed: {target} | | | |")
            continue
        found = kept(target, options.size, options.base)
        cells = (found.storage, found.saved, found.reached, found.resident)
        print(f"| {name} | {' | '.join(f'{number:,} B' for number in cells)} |")


if __name__ == "__main__":
    main()
