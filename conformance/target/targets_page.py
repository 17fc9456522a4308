"""The contract of every group as a table: the names that a target exposes, their signatures, and their clauses.

`loraspec spec` writes the table of TARGETS.md, and the shorter one of README.md. The names come from the groups'
records and the clauses, the signatures from `reference`.
"""

from __future__ import annotations

import enum
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.specification.groups import Group, groups

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conformance.specification.clause import Clause

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "conformance" / "TARGETS.md"
README = ROOT / "README.md"
LONG = 60  # characters; a longer signature is written once and then referred to
CLASS = r"<class '([\w.]+)'>"
BOUNDS = ("<!-- contract: written by `loraspec spec` -->\n", "<!-- end of the contract -->\n")


def page(text: str, clauses: Iterable[Clause]) -> str:
    """TARGETS.md with an up-to-date table.

    Raises:
        ValueError: if the page lacks the marks around the table.
    """
    return _between(text, PATH.name, table(list(clauses)))


def readme(text: str) -> str:
    """README.md with an up-to-date table of groups.

    Raises:
        ValueError: if the page lacks the marks around the table.
    """
    rows = ["| group | names | what is judged |", "|---|---|---|"]
    for name, group in groups().items():
        rows.append(f"| `{name}` | {group.names} | {group.judged} |")
        rows += [f"| | `{subject}` alone | {judged} |" for subject, judged in group.alone.items()]
    return _between(text, README.name, "\n".join(rows) + "\n")


def _between(text: str, page: str, written: str) -> str:
    before, begin, rest = text.partition(BOUNDS[0])
    _, end, after = rest.partition(BOUNDS[1])
    if not begin or not end:
        raise ValueError(f"{page} has no {BOUNDS[0].strip()} … {BOUNDS[1].strip()} for its table")
    return f"{before}{begin}\n{written}\n{end}{after}"


def table(clauses: list[Clause]) -> str:
    """The table: for each name of each group, its status, its signature, and the clauses that judge or need it."""
    rows = ["| group | name | | signature | what is judged |", "|---|---|---|---|---|"]
    shown: dict[str, str] = {}  # signature → the first name that has it
    for group, record in groups().items():
        members = [clause for clause in clauses if clause.group == group]
        about = f"{record.judged} ({len(members)} clauses)"
        for name, needed_by in _names(record, members).items():
            status = "required" if name in record.required else "optional"
            signature = _signature(name)
            if len(signature) > LONG and signature in shown:
                signature = f"as `{shown[signature]}`" if shown[signature] != name else "as above"
            shown.setdefault(signature, name)
            needed = f"{len(needed_by)} of the clauses" if len(needed_by) > 3 else ", ".join(needed_by)
            first = name == record.required[0]
            cells = (f"`{group}`" if first else "", f"`{name}`", status, signature, about if first else needed)
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _names(group: Group, members: list[Clause]) -> dict[str, list[str]]:
    """The names of a group, the required ones first, each with the clauses that need it."""
    found: dict[str, list[str]] = {name: [] for name in (*group.required, *group.subjects)}
    for clause in members:
        for name in clause.needs:
            found.setdefault(name, []).append(clause.id)
    return found


def _signature(name: str) -> str:
    """The signature of a name in `reference`, without annotations."""
    import reference

    owner, _, argument = name.rstrip(")").partition("(")
    if argument:
        return f"takes `{argument}`"
    thing: Any = reference
    for part in owner.split("."):
        thing = getattr(thing, part, None)
    if thing is None:
        return "not in `reference`; see the group's clauses"
    if isinstance(thing, type) and issubclass(thing, enum.Enum):
        return ", ".join(f"`{member.name}`" for member in thing)
    if isinstance(thing, property):
        return "a property"
    if not callable(thing):
        return f"a {type(thing).__name__}"
    method = ""
    if isinstance(thing, type) and hasattr(thing, "apply") and hasattr(thing, "backward"):
        thing, method = vars(thing)["forward"].__func__, ".apply"
    parameters = list(inspect.signature(thing).parameters.values())
    own = [p.replace(annotation=p.empty) for p in parameters if p.name not in ("self", "ctx")]
    written = str(inspect.Signature(own)).replace("=<factory>", "=…")
    return f"`{method}{re.sub(CLASS, _last_name, written)}`"


def _last_name(found: re.Match[str]) -> str:
    return found.group(1).rpartition(".")[2]
