"""Replacements in a watched module or class are detected, with and without the dict's version counter."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from conformance.isolation import dict_version
from conformance.isolation.monkeypatches import Space


class Watched:
    """A class with one function."""

    def held(self) -> None:
        """Do nothing."""


def module() -> ModuleType:
    """A module with functions, a class and a number."""
    made = ModuleType("made")
    vars(made).update(held=lambda: None, other=lambda: None, Kind=type("Kind", (), {}), number=1)
    return made


@pytest.fixture(params=[True, False], ids=["counted", "not counted"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dict_version.COUNTED  # the tested Python versions have the counter
    monkeypatch.setattr(dict_version, "COUNTED", request.param)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("owner", [module(), Watched], ids=["module", "class"])
def test_a_replacement_and_its_reversal_are_detected(owner: Any) -> None:
    space, original = Space.of(owner), owner.held
    for number in range(100):
        assert space.same()
        owner.held = number
        assert not space.same()
        assert space.changed() == {"held": (original, number)}
        owner.held = original
    assert space.same()


@pytest.mark.usefixtures("counted")
def test_added_and_deleted_names_are_detected() -> None:
    made = module()
    space = Space.of(made)
    assert space.same()
    made.added = len  # type: ignore[attr-defined]
    assert not space.same()
    del made.added  # type: ignore[attr-defined]
    assert space.same()
    del made.other
    assert not space.same()


@pytest.mark.usefixtures("counted")
def test_a_changed_number_is_ignored() -> None:
    made = module()
    space = Space.of(made)
    for number in range(10):
        made.number = number  # type: ignore[attr-defined]
        assert space.same()
    made.held = len  # type: ignore[attr-defined]
    assert not space.same()
