"""What was replaced in a watched module or class is seen, with the counter of its dict and without one."""

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
    assert dict_version.COUNTED  # on the Pythons that are tested
    monkeypatch.setattr(dict_version, "COUNTED", request.param)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("owner", [module(), Watched], ids=["module", "class"])
def test_a_replacement_is_seen_and_so_is_its_end(owner: Any) -> None:
    space, original = Space.of(owner), owner.held
    for number in range(100):
        assert space.same()
        owner.held = number
        assert not space.same()
        assert space.changed() == {"held": (original, number)}
        owner.held = original
    assert space.same()


@pytest.mark.usefixtures("counted")
def test_what_is_added_or_deleted_is_seen() -> None:
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
def test_a_number_may_change() -> None:
    made = module()
    space = Space.of(made)
    for number in range(10):
        made.number = number  # type: ignore[attr-defined]
        assert space.same()
    made.held = len  # type: ignore[attr-defined]
    assert not space.same()
