"""Conversion between records and JSON objects. A record is a frozen dataclass whose fields are the object's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

Record = TypeVar("Record")


def as_json(value: Any) -> Any:
    """A value in JSON's types: a record or mapping becomes an object, a tuple or list becomes an array."""
    if is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    return value


def from_json(kind: type[Record], found: Mapping[str, Any]) -> Record:
    """The record, read from a JSON object. Unknown keys are ignored; a field with a default may lack its key.

    Raises:
        KeyError: naming the missing key.
    """
    given = {}
    for field in fields(kind):  # type: ignore[arg-type]
        required = field.default is MISSING and field.default_factory is MISSING
        if required or field.name in found:
            given[field.name] = found[field.name]
    return kind(**given)
