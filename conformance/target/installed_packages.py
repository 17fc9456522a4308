"""The packages that clauses need, and whether they are installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from conformance.specification.clause import Clause


def uninstalled(clause: Clause) -> tuple[str, ...]:
    """The packages that a clause's cases need but that are not installed."""
    return tuple(package for package in clause.library.split() if not _is_installed(*package.partition(">=")[::2]))


def _is_installed(name: str, least: str) -> bool:
    """Whether a package is installed, in major version `least` or later."""
    if importlib.util.find_spec(name) is None:
        return False
    return not least or int(importlib.metadata.version(name).partition(".")[0]) >= int(least)
