"""Refused batches: indices, ranks and numbers of adapters that do not fit."""

from __future__ import annotations

from collections.abc import Callable

from conformance.clauses.batched.batch import Batch, Bound, bound
from conformance.clauses.batched.case import NORMAL, BatchedCase
from conformance.judgement.outcomes import Refused, Violation, require
from conformance.specification.clause import clause
from conformance.target.subject import Subject

BROKEN = NORMAL.narrowed(r=(3, 4), ranks=("different", "full"), lead=("2d", "3d"), routing=("mixed",))


def refused(subject: Subject, case: BatchedCase, what: str, change: Callable[[Bound], None]) -> None:
    """Require that a call with changed arguments raises, and that it leaves the operands as they were."""
    batch = Batch(subject, case)
    instance = bound(subject, batch)
    instance.tensors = dict(instance.tensors)
    instance.metadata = dict(instance.metadata)
    change(instance)
    try:
        instance.forward()
    except Refused:
        pass
    except Violation as violation:
        if violation.__cause__ is None:  # the target returned a malformed result
            raise
    else:
        raise Violation(f"lora_batched_linear returned although {what}: expected an error")
    for name, placed in batch.placed.items():
        require(not placed.contents_changed(), f"the call in which {what} modified {name} before it raised")


@clause(
    "BAT-REFUSE-INDEX",
    sentence="An adapter_index of another shape than x's leading dimensions, or of floats, is refused with an error.",
    why="A shape of [1] broadcasts, and so gives every row the adapter of the first.",
    cases=BROKEN,
    dtypes=("float32",),
    weight=0.67,
)
def test_malformed_index(subject: Subject, case: BatchedCase) -> float | None:
    def shorten(instance: Bound) -> None:
        instance.metadata["adapter_index"] = instance.metadata["adapter_index"][..., :-1]

    def one(instance: Bound) -> None:
        instance.metadata["adapter_index"] = instance.metadata["adapter_index"].flatten()[:1]

    def fraction(instance: Bound) -> None:
        instance.metadata["adapter_index"] = instance.metadata["adapter_index"].float()

    refused(subject, case, "adapter_index is one row short", shorten)
    refused(subject, case, "adapter_index has one element", one)
    refused(subject, case, "adapter_index holds floats", fraction)
    return None


@clause(
    "BAT-REFUSE-COUNTS",
    sentence="""lora_A, lora_B, scale and ranks of different numbers of adapters, or matrices that do not chain, are
    refused with an error.""",
    cases=BROKEN,
    dtypes=("float32",),
    weight=0.67,
)
def test_different_counts(subject: Subject, case: BatchedCase) -> float | None:
    for name in ("lora_A", "lora_B", "scale", "ranks"):

        def cut(instance: Bound, name: str = name) -> None:
            held = instance.metadata if name in instance.metadata else instance.tensors
            instance.metadata["adapter_index"] = instance.metadata["adapter_index"].clamp(max=0)
            held[name] = held[name][:-1]

        refused(subject, case, f"{name} has one adapter less than the others", cut)
    for name in ("lora_A", "lora_B"):

        def narrow(instance: Bound, name: str = name) -> None:
            instance.tensors[name] = instance.tensors[name][..., :-1]
            instance.metadata["ranks"] = instance.metadata["ranks"].clamp(max=1)

        refused(subject, case, f"{name} is one column short", narrow)
    return None


@clause(
    "BAT-REFUSE-RANGE",
    sentence="""An index below -1 or of L or more, and a rank below 0 or above the padded one, are refused with an
    error.""",
    level="SHOULD",
    why="A wrong index reads another adapter or foreign memory; but on a GPU the check waits for the device.",
    cases=BROKEN,
    dtypes=("float32",),
    weight=0.67,
)
def test_numbers_out_of_range(subject: Subject, case: BatchedCase) -> float | None:
    def put(name: str, number: int) -> Callable[[Bound], None]:
        def change(instance: Bound) -> None:
            changed = instance.metadata[name].clone()
            changed.view(-1)[case.seed % changed.numel()] = number
            instance.metadata[name] = changed

        return change

    for name, number in (("adapter_index", case.adapters), ("adapter_index", -2), ("ranks", case.r + 1), ("ranks", -1)):
        limits = "0 to the padded rank" if name == "ranks" else "-1 to L-1"
        refused(subject, case, f"{name} holds {number}, which is not in {limits}", put(name, number))
    return None
