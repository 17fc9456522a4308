"""Marks on functions that reproducers treat specially; the marks themselves are left out of reproducers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Marked = TypeVar("Marked", bound=Callable[..., Any])

LEFT_OUT: list[Callable[..., Any]] = []  # functions that register or record, and compute no result
DRAWING: list[Callable[..., Any]] = []  # functions that draw element values from the case alone
ON_RANKS: list[Callable[..., Any]] = []  # the function that runs a work on several ranks
KEEPING: list[Callable[..., Any]] = []  # functions that keep what they make of a subject for later cases
CONFIG_CLASS: list[Callable[..., Any]] = []  # the function that returns the target's config class, or the reference's


def full_name(function: Callable[..., Any]) -> str:
    """The full name of a function, `module.function`."""
    return f"{function.__module__}.{function.__qualname__}"


def left_out(function: Marked) -> Marked:
    """Mark a function whose calls and decorators a reproducer leaves out."""
    LEFT_OUT.append(function)
    return function


@left_out
def draws_values(function: Marked) -> Marked:
    """Mark a function whose results a reproducer contains as literals, if they are few."""
    DRAWING.append(function)
    return function


@left_out
def runs_on_ranks(function: Marked) -> Marked:
    """Mark the function that runs a work on ranks; a reproducer records what each rank does."""
    ON_RANKS.append(function)
    return function


@left_out
def keeps_for_later(function: Marked) -> Marked:
    """Mark a function that keeps what it makes; with `fresh=True` it makes it anew, so that a reproducer sees how."""
    KEEPING.append(function)
    return function


@left_out
def chooses_config(function: Marked) -> Marked:
    """Mark the function that a reproducer replaces by one that returns the target's config class."""
    CONFIG_CLASS.append(function)
    return function


left_out(left_out)
