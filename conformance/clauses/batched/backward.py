"""The backward pass of batches: each gradient, idle adapters, padding, empty batches, subsets, frozen weights."""

from __future__ import annotations

import numpy as np

from conformance.clauses.batched.batch import TRAINABLE, Batch, bound, run
from conformance.clauses.batched.case import BATCHED, LAYOUT, LEADING, MIXED, PADDED, SMALL, USED, BatchedCase
from conformance.clauses.batched.oracle import Oracle
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject

FEATURE = "batched_gradients"


def judged(subject: Subject, case: BatchedCase, names: tuple[str, ...] = TRAINABLE) -> float | None:
    """Judge the gradients of these operands."""
    batch = Batch(subject, case)
    instance, oracle = run(subject, batch), Oracle(batch)
    return worst(*(judge(instance.gradient(name), oracle.gradient(name)) for name in names))


@clause(
    "BAT-BWD-DX",
    sentence="dX_i = g_i W + s_e·(g_i B_e) A_e with the row's adapter e, in the dtype of x; g_i W without an adapter.",
    cases=BATCHED,
    feature=FEATURE,
)
def test_batched_gradient_of_x(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case, ("x",))


@clause(
    "BAT-BWD-DA",
    sentence="dA_e = s_e·(g B_e)ᵀ x over the rows that have adapter e and no others, in the dtype of lora_A.",
    cases=BATCHED.narrowed(routing=USED),
    feature=FEATURE,
)
def test_batched_gradient_of_lora_A(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case, ("lora_A",))


@clause(
    "BAT-BWD-DB",
    sentence="dB_e = s_e·gᵀ (x A_eᵀ) over the rows that have adapter e and no others, in the dtype of lora_B.",
    cases=BATCHED.narrowed(routing=USED),
    feature=FEATURE,
)
def test_batched_gradient_of_lora_B(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case, ("lora_B",))


@clause(
    "BAT-BWD-LEAD",
    sentence="""With any leading dimensions the gradients are right, and have their operands' shapes; those of an empty
    batch are zeros.""",
    cases=LEADING,
    feature=FEATURE,
    weight=0.5,
)
def test_batched_gradients_by_leading_dimensions(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case)


@clause(
    "BAT-BWD-LAYOUT",
    sentence="The gradients do not depend on the strides or the offset of any operand or of the upstream gradient.",
    cases=LAYOUT,
    feature=FEATURE,
    weight=0.5,
)
def test_batched_gradients_by_layout(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case)


@clause(
    "BAT-BWD-MIXED",
    sentence="""When the adapters' dtype differs from that of x, the gradients are right, each in the dtype of its own
    operand.""",
    cases=MIXED,
    feature=f"{FEATURE} adapter_dtype",
    weight=0.5,
)
def test_batched_gradients_of_mixed_dtypes(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case)


@clause(
    "BAT-BWD-PADDING",
    sentence="""Gradients are exactly zero beyond each adapter's rank, and the gradients of the rest are right
    whatever lora_A and lora_B hold there: NaN does not show.""",
    cases=PADDED,
    feature=FEATURE,
    weight=0.5,
)
def test_batched_gradients_beyond_a_rank(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case)


@clause(
    "BAT-BWD-IDLE",
    sentence="""An adapter that no row uses, the first, the last or all of them, has gradients that are zeros, and not
    None.""",
    cases=SMALL.narrowed(routing=("idle-first", "idle-middle", "idle-last", "one", "none")),
    feature=FEATURE,
    weight=0.5,
)
def test_batched_gradients_of_idle_adapters(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    instance = run(subject, batch)
    idle = sorted(set(range(case.adapters)) - set(batch.index.tolist()))
    for name in ("lora_A", "lora_B"):
        gradient = instance.gradient(name)
        require(gradient is not None, f"the gradient of {name} is None: expected zeros for adapters {idle}")
        assert gradient is not None
        wanted = batch.values[name].shape
        require(tuple(gradient.shape) == wanted, f"the gradient of {name} has shape {list(gradient.shape)}: "
                f"expected {list(wanted)}")  # fmt: skip
        wrong = [adapter for adapter in idle if np.any(numbers(gradient)[adapter] != 0)]
        require(not wrong, f"the gradient of {name} is not zero for adapters {wrong}, which no row uses")
    return judge(instance.gradient("x"), Oracle(batch).dX)


@clause(
    "BAT-BWD-NEEDS",
    sentence="""Any subset of x, lora_A and lora_B may require grad: its members get their gradients, and the others
    get none.""",
    cases=SMALL,
    feature=FEATURE,
    weight=0.5,
)
def test_batched_subsets(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    chosen = 1 + case.seed % (2 ** len(TRAINABLE) - 1)
    needs = tuple(name for place, name in enumerate(TRAINABLE) if chosen >> place & 1)
    instance, oracle = run(subject, batch, needs), Oracle(batch)
    for name in TRAINABLE:
        if name not in needs:
            require(instance.gradient(name) is None, f"{name} got a gradient although it does not require one")
    return worst(*(judge(instance.gradient(name), oracle.gradient(name)) for name in needs))


@clause(
    "BAT-BWD-FROZEN",
    sentence="W is frozen: it gets no gradient, even when it requires grad.",
    cases=SMALL,
    feature=FEATURE,
    weight=0.34,
)
def test_batched_weight_is_frozen(subject: Subject, case: BatchedCase) -> float | None:
    instance = run(subject, Batch(subject, case), (*TRAINABLE, "weight"))
    require(instance.gradient("weight") is None, "weight got a gradient although it is frozen")
    return None


@clause(
    "BAT-BWD-TWICE",
    sentence="Two backward passes over a retained graph give the same gradients.",
    cases=SMALL,
    feature=FEATURE,
    weight=0.34,
)
def test_batched_backward_twice(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    instance, oracle, ratios = bound(subject, batch), Oracle(batch), []
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    for retain in (True, False):
        for name in TRAINABLE:
            instance.tensors[name].grad = None
        instance.backward(y, retain_graph=retain)
        ratios += [judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE]
    return worst(*ratios)
