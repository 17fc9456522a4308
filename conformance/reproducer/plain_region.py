"""Stand-ins for functions of the suite that explain a failure of the target; a short script needs no explanation."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from typing import Any

from conformance.cases.reproducer_marks import full_name
from conformance.judgement.outcomes import require
from conformance.reproducer.module_source import Definition, Lines, source
from conformance.target.calls import calling, fault_of
from conformance.target.expected_errors import calling_quietly, quiet
from conformance.target.subject import poisoned_memory

REGION = '''
@contextmanager
def {name}({parameter}):
    """A region that calls the target."""
    yield
'''
REQUIRE = '''
def require(condition, message):
    """Exit with a message unless a condition holds."""
    if not condition:
        raise SystemExit(message)
'''


@cache
def plain_regions() -> dict[str, Definition]:
    """Definitions that replace these functions, by full name."""
    texts: dict[Callable[..., Any], str] = {
        calling: "what",
        fault_of: "function",
        calling_quietly: "what",
        quiet: "",
        poisoned_memory: "",
    }
    written = {function: REGION.format(name=function.__name__, parameter=p) for function, p in texts.items()}
    written[require] = REQUIRE
    found = {}
    for function, text in written.items():
        found[full_name(function)] = Definition(source(function.__module__), ast.parse(text).body[0], Lines(text))
    return found
