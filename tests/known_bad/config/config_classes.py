"""Defective classes named `PeftConfig` for the known-bad twins of the group config."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import reference

CONFIG = {"groups": ("config",), "dtypes": ("float32",)}


class Right:
    """A target with the reference's config; twins replace `PeftConfig`."""

    PeftConfig: Any = reference.PeftConfig


def reading(change: Any) -> Any:
    """Return a PeftConfig whose from_dict reads `change(dict)` instead of the dict."""

    @dataclass
    class PeftConfig(reference.PeftConfig):
        @classmethod
        def from_dict(cls, d: Any) -> Any:
            return super().from_dict(change(d))

    return PeftConfig


def writing(change: Any) -> Any:
    """Return a PeftConfig whose to_dict returns `change(dict, config)`."""

    @dataclass
    class PeftConfig(reference.PeftConfig):
        def to_dict(self) -> Any:
            return change(super().to_dict(), self)

    return PeftConfig


def accepting(key: str, bad: Any, taken: Any = None) -> Any:
    """Return a PeftConfig that accepts values of a field for which `bad` is true, converted by `taken` if given."""

    @dataclass
    class PeftConfig(reference.PeftConfig):
        def __post_init__(self) -> None:
            value = getattr(self, key)
            wrong = bad(value)
            if wrong:
                setattr(self, key, getattr(reference.PeftConfig(), key))
            super().__post_init__()
            if wrong:
                setattr(self, key, taken(value) if taken else value)

    return PeftConfig


def refusing(key: str, bad: Any) -> Any:
    """Return a PeftConfig that refuses values of a field for which `bad` is true."""

    @dataclass
    class PeftConfig(reference.PeftConfig):
        def __post_init__(self) -> None:
            if bad(getattr(self, key)):
                raise ValueError(f"{key} = {getattr(self, key)!r} must be given")
            super().__post_init__()

    return PeftConfig


def read(cls: Any, d: Any) -> Any:
    return cls(**vars(reference.PeftConfig.from_dict(d)))


def remade(names: Any, check: bool = True) -> Any:
    """Return a new PeftConfig class with these fields of the reference, in this order."""
    known = {f.name: f for f in dataclasses.fields(reference.PeftConfig)}
    made = [
        (n, known[n].type, field(default=known[n].default, default_factory=known[n].default_factory)) for n in names
    ]
    methods = {"to_dict": reference.PeftConfig.to_dict, "from_dict": classmethod(read)}
    if check:
        methods["__post_init__"] = reference.PeftConfig.__post_init__
    return dataclasses.make_dataclass("PeftConfig", made, namespace=methods)


NAMES = [f.name for f in dataclasses.fields(reference.PeftConfig)]
