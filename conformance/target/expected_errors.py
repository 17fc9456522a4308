"""Expected errors: a call that the target must refuse, and the words that its message must contain."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from conformance.judgement.outcomes import Violation, require
from conformance.target.calls import calling

T = TypeVar("T")


def refuses(
    what: str, call: Callable[[], Any], *mentions: str, types: tuple[type[Exception], ...] = (ValueError,)
) -> str:
    """Make a call of the target that must raise, and return the error's message.

    Args:
        what: the call, as shown in messages.   mentions: words that the error's message must contain.
        types: the exception types that count as a refusal.
    Raises:
        Violation: if the call returns, raises another type, or its message lacks one of the words.
    """
    expected = " or ".join(t.__name__ for t in types)
    try:
        with quiet():
            result = call()
    except types as error:
        for word in mentions:
            require(word in str(error), f"{what} raised {_shown(error)}: the message does not name {word}")
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too is a failure of the target
        raise Violation(f"{what} raised {_shown(error)}: expected {expected}") from error
    raise Violation(f"{what} returned {type(result).__name__}: expected {expected}")


def unless_it_raises(call: Callable[[], T]) -> T | None:
    """The result of a call of the target or of a derivative, which may raise an exception of any type: None then."""
    try:
        return call()
    except Exception:  # noqa: BLE001  (that a target raises is allowed; what it raises is its own matter)
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """A region in which warnings are neither shown nor turned into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def calling_quietly(what: str) -> Iterator[None]:
    """Like `calling`, without warnings."""
    with quiet(), calling(what):
        yield


def _shown(error: BaseException) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), "(no message)")
    return f"{type(error).__name__}: {first[:300]}"
