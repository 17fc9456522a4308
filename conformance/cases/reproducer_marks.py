"""Marks on functions that the writer of reproducers must know; in a reproducer the marks themselves are left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Marked = TypeVar("Marked", bound=Callable[..., Any])

LEFT_OUT: list[Callable[..., Any]] = []  # functions that register or record: no part of what a check computes
DRAWING: list[Callable[..., Any]] = []  # functions that make the numbers of a case from the case alone
CONFIG_CLASS: list[Callable[..., Any]] = []  # the function that chooses between the target's config class and ours


def full_name(function: Callable[..., Any]) -> str:
    """The name by which a function is found: its module's, a dot, its own."""
    return f"{function.__module__}.{function.__qualname__}"


def left_out(function: Marked) -> Marked:
    """Mark a function whose calls and decorations a reproducer does without."""
    LEFT_OUT.append(function)
    return function


@left_out
def draws_values(function: Marked) -> Marked:
    """Mark a function whose numbers a reproducer holds as literals, where they are few."""
    DRAWING.append(function)
    return function


@left_out
def chooses_config(function: Marked) -> Marked:
    """Mark the function that a reproducer replaces by one that takes the target's config class."""
    CONFIG_CLASS.append(function)
    return function


left_out(left_out)
