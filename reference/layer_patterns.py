"""Patterns of layer names that give some layers another rank or alpha, by the rule of Hugging Face PEFT."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

LONGEST = 500  # characters of a pattern
MOST_REPEATS = 3  # repeats in a pattern: the time to match grows with this power of a name's length
_REPEAT = re.compile(r"\\.|\[\^?\]?(?:\\.|[^]\\])*\]|([*+{])|(\(\?)|(\)[*+{])", re.DOTALL)


def first_match(patterns: Iterable[str], name: str) -> str | None:
    """The first pattern that matches a dotted name or the end of one after a dot, or None.

    Args:
        patterns: regular expressions, accepted by `checked_patterns`; ``^a.b`` matches only the whole name a.b.
    Source: PEFT `get_pattern_key`.
    """
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", name)), None)


def exact_pattern(name: str) -> str:
    """The pattern that matches only this name."""
    return "^" + re.escape(name)


def checked_patterns(key: str, value: object, check: Callable[[str, Any], None]) -> dict[str, Any]:
    """A new dict of patterns and their values; None is no pattern.

    A pattern may come from a file of someone else, so it may not take long to match: it has at most `MOST_REPEATS`
    repeats, no repeated group and no extension ``(?``.

    Args:
        key: the name of the option, for errors.   check: refuses a value, whose name it is given.
    Raises:
        ValueError: naming the option and the pattern, for a value that is not a dict, a pattern that is not a regular
            expression or could take long, and as `check` does.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} = {value!r}: expected a dict of patterns and numbers")
    for pattern, number in value.items():
        if not isinstance(pattern, str):
            raise ValueError(f"{key} has the pattern {pattern!r}: expected a string")
        _check_pattern(key, pattern)
        check(f"{key}[{pattern!r}]", number)
    return dict(value)


def _check_pattern(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{key} has {pattern!r:.80}, which is no regular expression: {error}") from None
    found = [match.groups() for match in _REPEAT.finditer(pattern)]
    repeats = sum(single is not None for single, _, _ in found)
    if len(pattern) > LONGEST or repeats > MOST_REPEATS or any(ext or group for _, ext, group in found):
        raise ValueError(
            f"{key} has the pattern {pattern!r:.80}, which may take long to match: expected at most {LONGEST} "
            f"characters and {MOST_REPEATS} repeats, no repeated group and no (?"
        )
