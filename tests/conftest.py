"""Options of the suite's own tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--record-known-bad` rewrites known_bad/recorded.json from what each twin fails now (run with -n 0)."""
    parser.addoption("--record-known-bad", action="store_true", help="record the clauses each known-bad twin fails")
