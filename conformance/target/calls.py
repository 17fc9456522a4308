"""Calls of the target's code; their exceptions are failures of the target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from conformance.isolation.monkeypatches import PRISTINE, protect
from conformance.judgement.outcomes import Inconclusive, Refused, Violation

protect(__name__)


@contextmanager
def calling(what: str) -> Iterator[None]:
    """A region that runs the target's code: an exception inside is a failure of the target, not of the suite.

    Raises:
        Refused: for NotImplementedError.   Violation: for any other exception, naming the call.
    """
    try:
        with PRISTINE.suspended():
            yield
    except NotImplementedError as error:
        raise Refused(f"{what} raised NotImplementedError: {error}") from error
    except (Violation, Inconclusive, Refused, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit and PanicException included
        raise Violation(f"{what} raised {type(error).__name__}: {first_lines(error)}") from error


@contextmanager
def fault_of(function: str) -> Iterator[None]:
    """A region whose violations are the fault of one of the target's functions; their messages name it."""
    try:
        yield
    except Violation as found:
        if function in str(found):
            raise
        apart = "\n" if str(found).startswith("worst ") else " "
        raise Violation(f"{function}:{apart}{found}", found.ratio, is_slow=found.is_slow) from found.__cause__


def first_lines(error: BaseException, most: int = 3) -> str:
    """The first lines of an exception's text, indented as a message shows them."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n         ".join(lines[:most])[:600] or "(no message)"
