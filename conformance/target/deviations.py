"""A file of expected failures: by clause the reason for which a target does not meet it, in TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from conformance.errors import UsageError, known
from conformance.specification import spec_page
from conformance.specification.former_ids import present_reasons

LINE = 'LIN-AMP = "the reason, or the URL of an issue"'  # what the file has, as messages show it
HEADER = """\
# Clauses that the target is known to fail, each with what was seen or the reason; edit the reasons.
# Once a clause passes, a run fails until its line is removed.
"""


def read(path: Path) -> dict[str, str]:
    """The reasons in a file, by clause.

    Raises:
        UsageError: if the file cannot be read, is malformed, gives no reason, or names a clause that does not exist.
    """
    name = f"the deviations file {str(path)!r}"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror or error}") from error
    except ValueError as error:  # bytes that are no text, and what is no TOML
        raise UsageError(f"{name} is no TOML: {error}; expected lines like {LINE}") from error
    for clause, reason in found.items():
        if not isinstance(reason, str) or not reason.strip():
            kind = "an empty text" if isinstance(reason, str) else f"the {type(reason).__name__} {reason!r}"
            raise UsageError(f"{name} gives {clause} {kind} as its reason: expected lines like {LINE}")
    found = present_reasons(found)
    known(found, spec_page.read(), f"clause in {name}:")
    return found


def text(reasons: Mapping[str, str]) -> str:
    """The content of a file with these reasons: the clauses in the order of SPEC.md, each below its sentence."""
    lines = [HEADER]
    for clause, entry in spec_page.read().items():
        if clause in reasons:
            lines += [f"# {entry.sentence}", f"{clause} = {_quoted(reasons[clause])}", ""]
    return "\n".join(lines)


def _quoted(reason: str) -> str:
    # JSON's escapes are TOML's, but for the sign 127, which JSON leaves as it is
    return json.dumps(reason, ensure_ascii=False).replace("\x7f", "\\u007F")
