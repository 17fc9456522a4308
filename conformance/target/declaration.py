"""The declaration of a target, `CONFORMANCE`: what it says about itself, checked key by key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from conformance.errors import TargetError, UsageError
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.target import deviations
from conformance.target.features import ALL_POSITIONS, check_features


def check_declaration(declared: Any, spec: str) -> None:
    """Check the names and the types of what a target declares.

    Raises:
        TargetError: for an unknown key or name, or a value of another type.
    """
    known: dict[str, Any] = {
        "name": str,
        "version": str,
        "devices": (tuple, list),
        "dtypes": (tuple, list),
        "deviations": (dict, str, Path),
        "dropout_positions": (tuple, list),
        "features": dict,
        "adapters": dict,
    }
    if not isinstance(declared, dict):
        raise TargetError(f"{spec}.CONFORMANCE is a {type(declared).__name__}: expected a dict")
    for key, value in declared.items():
        if key not in known:
            raise TargetError(f"{spec}.CONFORMANCE has the unknown key {key!r}: expected {', '.join(known)}")
        if not isinstance(value, known[key]):
            raise TargetError(f"{spec}.CONFORMANCE[{key!r}] is a {type(value).__name__}: {value!r}")
    for key, allowed in (("dtypes", FLOAT_DTYPES), ("dropout_positions", ALL_POSITIONS)):
        unknown = set(declared.get(key, ())) - set(allowed)
        if unknown:
            raise TargetError(
                f"{spec}.CONFORMANCE[{key!r}] names {', '.join(sorted(map(str, unknown)))}: "
                f"expected some of {', '.join(allowed)}"
            )
    check_features(declared.get("features", {}), spec)


def read_deviations(thing: Any, spec: str, name: str | Path) -> dict[str, str]:
    """The expected failures in a file that a declaration names; its path begins at the folder of the module.

    Raises:
        TargetError: if the file cannot be read, or holds anything else.
    """
    module = sys.modules.get(spec.partition(":")[0], thing)
    file = getattr(module, "__file__", None)
    path = Path(file).parent / name if file else Path(name)
    try:
        return deviations.read(path)
    except UsageError as error:
        raise TargetError(f"{spec}.CONFORMANCE['deviations']: {error}") from error
