"""Every exception of the suite that ends a command, and the checks of given names with their "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

MOST = 16  # names that a message lists in full; all groups fit
WILDCARDS = frozenset("*?[]")


class UsageError(Exception):
    """The command cannot do what the user asked for; the message names the given and the expected value."""


class SuiteError(Exception):
    """The suite itself failed; the message is its traceback or log."""


class TargetError(Exception):
    """The target cannot be tested: its import fails, or a claimed name does not take its arguments."""


def known(names: Iterable[str], expected: Iterable[str], what: str) -> None:
    """Check that every name is one of the expected names.

    Raises:
        UsageError: for the first unknown name, with the nearest known ones.
    """
    choices = list(expected)
    for name in names:
        if name not in choices:
            raise UsageError(f"unknown {what} {name!r}: {suggestion(name, choices)}")


def matched(patterns: Iterable[str], names: Iterable[str], what: str) -> None:
    """Check that every pattern, a name or one with wildcards, matches one of the names.

    Raises:
        UsageError: for the first pattern that matches nothing, with the nearest names.
    """
    choices = list(names)
    for pattern in patterns:
        if not WILDCARDS & set(pattern):
            known([pattern], choices, what)
        elif not any(fnmatchcase(name, pattern) for name in choices):
            nearest = suggestion("".join(sign for sign in pattern if sign not in WILDCARDS), choices)
            raise UsageError(f"no {what} matches {pattern!r}: {nearest}")


def suggestion(name: str, choices: list[str]) -> str:
    """The expected names; the similar ones where the list is long."""
    if len(choices) <= MOST:
        return f"expected one of {', '.join(choices)}"
    by_case = {choice.lower(): choice for choice in choices}
    near = [by_case[word] for word in difflib.get_close_matches(name.lower(), by_case, n=4, cutoff=0.5)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"expected one of {', '.join(choices[:MOST])}, …"
