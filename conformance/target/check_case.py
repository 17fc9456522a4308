"""One case of one clause on one subject, with the random generators seeded by the case."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.cases.seeding import seed_torch
from conformance.isolation import process_state
from conformance.isolation.monkeypatches import protect
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.target import fault

if TYPE_CHECKING:
    from conformance.cases.case import Case
    from conformance.specification.clause import Clause


protect(__name__)


def check_case(clause: Clause, subject: Any, case: Case) -> float | None:
    """Check one case with random generators seeded by it, so that the result does not depend on earlier cases.

    Raises:
        Violation, Refused: also for any other exception that the target caused, wherever in the check; see `fault`.
    """
    try:
        return _seeded(clause, subject, case)
    except (Violation, Inconclusive, Refused, KeyboardInterrupt):
        raise
    except BaseException as error:
        again = partial(fault.is_right, subject, lambda right: _seeded(clause, right, case))
        raise fault.outcome_of(error, clause.check, again) from error


def _seeded(clause: Clause, subject: Any, case: Case) -> float | None:
    before = process_state.taken(process_state.RESTORED)
    random.seed(case.seed)
    np.random.seed(case.seed % 2**32)
    seed_torch(case.seed)
    try:
        return clause.check(subject, case)
    finally:
        process_state.restore(before)
