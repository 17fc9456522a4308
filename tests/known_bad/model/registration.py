"""The decorator that registers a defective `ModuleMatcher` as a known-bad twin."""

from __future__ import annotations

from typing import Any

from tests.baselines.model import RightMatcher, RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL


def with_matcher(matcher: type[RightMatcher]) -> Any:
    """Return a `RightModel` class that uses this matcher."""
    return type(matcher.__name__, (RightModel,), {"Matcher": matcher})


def breaks_by_matcher(clause: str, says: str, source: str = "") -> Any:
    """Return a decorator that registers a target with the decorated matcher as a known-bad twin."""

    def register(matcher: type[RightMatcher]) -> type[RightMatcher]:
        breaks(clause, says=says, source=source, **MODEL)(with_matcher(matcher))
        return matcher

    return register
