"""Memory between forward and backward: beyond the storage nothing of W's size, looked for in three ways; scratch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conformance.clauses.quantised.case import SMALL, PackedCase
from conformance.clauses.quantised.forward import LAYERS
from conformance.clauses.quantised.held_tensors import memory_of, nodes_of, owned, plain_tensors, tensors_in
from conformance.clauses.quantised.packed_operands import PackedOperands, adapted, operands_of
from conformance.isolation.allocated_memory import allocated
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Instance, Subject

# so few rows that the activations are small beside the weight
WIDE = SMALL.narrowed(
    m=(2,), k=(256, 384), n=(384, 256), r=(2,), scale=(2.0,), content=("spread",), training=(True, False)
)
KINDS = ("float32", "bfloat16")
MANY = 4  # layers whose memory is added up
OF_ONE = 2**15  # bytes of Python and torch objects of one layer and its graph


def least(case: PackedCase) -> int:
    """The bytes that count as of W's size: half a byte for each element, as a second copy of 4-bit codes has."""
    return case.n * case.k // 2


def built(subject: Subject, case: PackedCase) -> Instance:
    """An adapted layer all of whose operands require grad; the weight from before packing is freed."""
    instance = adapted(subject, operands_of(subject, case))
    instance.require_grad(TRAINABLE)
    operands = instance.operands
    assert isinstance(operands, PackedOperands)
    del operands.linear
    operands.values["weight"] = operands.values["weight"][:1].copy()
    for name in ("weight", "lora_A", "lora_B"):
        operands.placed.pop(name)
    return instance


def judge_held(subject: Subject, instance: Instance, held: list[torch.Tensor], where: str) -> None:
    """Fail where tensors that are no part of the layer or its operands together are of W's size."""
    own = owned(subject.target, instance.module, *instance.tensors.values())
    new = {address: seen for address, seen in memory_of(held).items() if address not in own}
    case = instance.operands.case
    assert isinstance(case, PackedCase)
    total = sum(size for size, _ in new.values())
    largest = max((tensor for _, tensor in new.values()), key=lambda t: t.untyped_storage().nbytes(), default=None)
    shown = "" if largest is None else f", one of them {str(largest.dtype)[6:]} {list(largest.shape)}"
    require(total < least(case), f"{where} hold {total} bytes beyond the storage and the operands{shown}: expected "
            f"fewer than {least(case)}, half a byte for each element of W {[case.n, case.k]}")  # fmt: skip


@clause(
    "QNT-MEM-SAVED",
    sentence="""Between forward and backward nothing of W's size lives beyond the storage among the tensors that
    autograd saves for backward: Ŵ is computed again.""",
    why="A layer in 4 bits that keeps Ŵ for backward needs more memory in training than one in 16 bits.",
    cases=WIDE,
    dtypes=KINDS,
    subjects=LAYERS,
    weight=0.25,
)
def test_saved_tensors(subject: Subject, case: PackedCase) -> float | None:
    instance = built(subject, case)
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        instance.forward()
    judge_held(subject, instance, saved, "the saved tensors")
    return None


@clause(
    "QNT-MEM-NODE",
    sentence="""Between forward and backward nothing of W's size lives beyond the storage in the attributes of the
    graph's nodes, nor in what they refer to: lists, closures, the layer itself.""",
    why="A tensor that is an attribute of an autograd function's ctx escapes the hooks of saved tensors.",
    cases=WIDE,
    dtypes=KINDS,
    subjects=LAYERS,
    weight=0.25,
)
def test_attributes_of_nodes(subject: Subject, case: PackedCase) -> float | None:
    instance = built(subject, case)
    y = instance.forward()
    held = list(tensors_in(*(getattr(node, "__dict__", {}) for node in nodes_of(y)), vars(instance.module)))
    judge_held(subject, instance, held, "the nodes of the graph and the layer")
    return None


@clause(
    "QNT-MEM-LAYERS",
    sentence="""The memory that several layers take, from before packing until after their forward passes, exceeds that
    of their storage and activations by nothing of W's size for each layer; so it does after backward.""",
    why="A cache that neither the graph nor the layer refers to shows in the sum alone.",
    cases=WIDE,
    dtypes=KINDS,
    subjects=LAYERS,
    weight=0.25,
)
def test_memory_of_layers(subject: Subject, case: PackedCase) -> float | None:
    first = built(subject, case)  # with it libraries allocate what they keep for later calls of these sizes
    first.backward(first.forward())
    before, layers, outputs = allocated(), [], []
    for _ in range(MANY):
        layers.append(built(subject, case))
        outputs.append(layers[-1].forward())
    fitted = layers[0].operands.case
    assert isinstance(fitted, PackedCase)
    own = sum(size for layer in layers for size, _ in owned(subject.target, layer.module, *_all(layer)).values())
    activations = 4 * 4 * (fitted.m + 1) * (fitted.n + fitted.k + fitted.r) * MANY
    expected = own + activations + OF_ONE * MANY

    def judge_total(when: str) -> None:
        if allocated() - before - expected >= MANY * least(fitted):
            gc.collect()  # only then, since it takes long; what waits for it is not kept
        each = (allocated() - before - expected) / MANY
        require(each < least(fitted), f"{when} each of {MANY} layers takes {each:.0f} bytes more than its storage, "
                f"adapter and activations: expected fewer than {least(fitted)}, half a byte for each element of W "
                f"{[fitted.n, fitted.k]}")  # fmt: skip

    judge_total("between the passes")
    for layer, y in zip(layers, outputs, strict=True):
        layer.backward(y)
    judge_total("after backward")
    return None


def _all(instance: Instance) -> list[torch.Tensor]:
    return [placed.buffer for placed in instance.operands.placed.values()]


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of the memories that operations make while it is active; `most` is the largest sum of a moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, tuple[Any, int]] = {}
        self.now = self.most = 0

    def _ended(self, key: int) -> Callable[[Any], None]:
        def ended(_: Any) -> None:
            self.now -= self.live.pop(key, (None, 0))[1]

        return ended

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.live and key not in given:
                self.live[key] = weakref.ref(storage, self._ended(key)), storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors with memory of their own among an operation's arguments or results."""
    return [plain for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) for plain in plain_tensors(leaf)]


@clause(
    "QNT-MEM-SCRATCH",
    sentence="""A pass over several layers, forward and then backward, needs no more scratch than a pass over one: what
    is made of Ŵ for one layer is freed before the next.""",
    cases=WIDE,
    dtypes=("float32",),
    subjects=LAYERS,
    weight=0.17,
)
def test_scratch_is_freed(subject: Subject, case: PackedCase) -> float | None:
    one, several = (most_memory([built(subject, case) for _ in range(count)]) for count in (1, MANY))
    for name, alone, together in zip(("forward", "backward"), one, several, strict=True):
        limit = alone + least(case) * MANY // 2
        require(together < limit, f"the {name} pass over {MANY} layers has {together} bytes at one time, over one "
                f"layer {alone}: expected fewer than {limit}")  # fmt: skip
    return None


@clause(
    "QNT-MEM-TILE",
    sentence="The scratch of a forward pass, and of a backward pass, is at most one Ŵ in float32.",
    cases=WIDE,
    level="SHOULD",
    dtypes=("float32",),
    subjects=LAYERS,
    weight=0.17,
)
def test_scratch_is_one_weight(subject: Subject, case: PackedCase) -> float | None:
    most = most_memory([built(subject, case)])
    size = 4 * case.n * case.k
    for name, bytes_at_once in zip(("forward", "backward"), most, strict=True):
        require(bytes_at_once < 1.25 * size, f"the {name} pass has {bytes_at_once} bytes at one time: expected at most "
                f"{size}, one Ŵ in float32, and a quarter of it for the rest")  # fmt: skip
    return None


def most_memory(layers: list[Instance]) -> tuple[int, int]:
    """The most bytes at one time that the forward passes of these layers make, and then their backward passes."""
    with LiveMemory() as forward:
        outputs = [layer.forward() for layer in layers]
    with LiveMemory() as back, calling("the backward pass"):
        torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    return forward.most, back.most
