"""Arguments of grouped layers: indices, offsets and operands that do not fit are refused."""

from __future__ import annotations

import torch

from conformance.clauses.experts.case import NORMAL, GroupedCase
from conformance.clauses.experts.forward import FUNCTIONS, PLAIN
from conformance.clauses.experts.grouped import SORTED, Grouped, bound
from conformance.judgement.outcomes import Refused, Violation
from conformance.specification.clause import clause
from conformance.target.subject import Subject

WHOLE = NORMAL.narrowed(k=(8, 17), n=(5, 8), r=(2, 4), experts=(3, 4), base=(True,), lead=("2d",))
BROKEN = ("lora_A", "lora_B", "weight", "x", "rank", "experts of lora_A", "experts of lora_B", "experts of weight")


def refuses(subject: Subject, grouped: Grouped, what: str) -> None:
    """Require that a call raises.

    Raises:
        Violation: if it returns.
    """
    try:
        bound(subject, grouped).forward()
    except Refused:
        return
    except Violation as violation:
        if violation.__cause__ is not None:  # the target raised; without a cause, it returned a malformed result
            return
        raise
    raise Violation(f"{subject.name} returned although {what}: expected an error")


@clause(
    "EXP-SHAPES",
    sentence="""Operands whose features, rank or widths do not chain, or whose numbers of experts differ, are refused
    with an error.""",
    cases=WHOLE,
    dtypes=("float32",),
    subjects=FUNCTIONS,
    weight=2.0,
)
def test_grouped_operands_that_do_not_chain(subject: Subject, case: GroupedCase) -> float | None:
    grouped, broken = Grouped(subject, case), BROKEN[case.seed % len(BROKEN)]
    if broken == "rank":
        grouped.values["lora_A"] = grouped.values["lora_A"][:, :-1].copy()
    elif broken.startswith("experts of "):
        name = broken.removeprefix("experts of ")
        grouped.values[name] = grouped.values[name][:-1].copy()
    else:
        grouped.values[broken] = grouped.values[broken][..., :-1].copy()
    refuses(subject, grouped, f"{broken} does not fit the other operands")
    return None


@clause(
    "EXP-INDEX",
    sentence="""An index for more, fewer or other dimensions than x has rows, or one that is no integer, is refused with
    an error.""",
    cases=WHOLE.narrowed(m=(5, 7)),
    dtypes=("float32",),
    subjects=PLAIN,
)
def test_an_index_that_does_not_fit(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    index = grouped.routing
    wrong = {
        "has one element less than x has rows": index[:-1],
        "is a matrix for a matrix x": index.unsqueeze(1),
        "is a float": index.to(torch.float32),
        "is boolean": index > 0,
    }
    what = list(wrong)[case.seed % len(wrong)]
    grouped.routing = wrong[what]
    refuses(subject, grouped, f"the index {what}")
    return None


@clause(
    "EXP-OFFSETS",
    sentence="""Offsets that decrease, begin below 0, end beyond the rows, are not one for each expert or are no
    integers are refused with an error.""",
    cases=WHOLE.narrowed(routing=("uneven",), m=(7, 12)),
    dtypes=("float32",),
    subjects=(SORTED,),
)
def test_offsets_that_do_not_fit(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    offsets = grouped.routing
    falling, beyond, below = offsets.clone(), offsets.clone(), offsets.clone()
    falling[-2], beyond[-1], below[0] = offsets[-1] + 1, len(grouped.index) + 3, -1
    wrong = {
        "decrease": falling,
        "end beyond the rows": beyond,
        "begin below 0": below,
        "are fewer than the experts": offsets[:-1],
        "are floats": offsets.to(torch.float32),
    }
    what = list(wrong)[case.seed % len(wrong)]
    grouped.routing = wrong[what]
    refuses(subject, grouped, f"the offsets {what}")
    return None
