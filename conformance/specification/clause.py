"""A clause: one normative sentence with a stable id, and the check that decides it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conformance.cases.case import Space

MUST, SHOULD = "MUST", "SHOULD"
GROUPS = (
    "linear",
    "layer",
    "merge",
    "dora",
    "fused",
    "model",
    "config",
    "gradnorm",
    "training",
    "hybrid",
    "fhe",
    "remote",
    "checkpoint",
    "distributed",
)
FLOAT_DTYPES = ("float64", "float32", "bfloat16", "float16")
# A check returns the worst error ÷ budget it saw (None where it compares no numbers) and raises Violation.
Check = Callable[[Any, Any], "float | None"]


@dataclass(frozen=True)
class Clause:
    """One normative sentence and how it is checked.

    Attributes:
        id: stable, never reused with another meaning (`LIN-BWD-DB`).
        sentence: what an implementation must do.
        group: the group of names that claims it (`linear`, `layer`, …).
        check: called with the subject and a case; raises `Violation`.
        cases: where its cases are drawn from.
        level: MUST gates the verdict, SHOULD is reported.
        dtypes: judged once for each of them; empty where dtype has no meaning.
        needs: public names without which this clause is not claimed, beyond the group's required ones.
        subjects: names of the group's subjects it applies to; empty for all.
        position: the dropout position without which it is not claimed; empty for either.
        library: packages that its cases need, as in ``transformers>=5 peft``; not claimed where one is not installed.
        weight: cases relative to an ordinary clause (0.1 for one that compiles, say); at least one runs.
    """

    id: str
    sentence: str
    group: str
    check: Check
    cases: Space[Any]
    level: str = MUST
    dtypes: tuple[str, ...] = FLOAT_DTYPES
    needs: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    position: str = ""
    library: str = ""
    weight: float = 1.0
    source: str = field(default="", compare=False)


REGISTRY: dict[str, Clause] = {}


def clause(
    id: str,  # noqa: A002  (the field's own name)
    sentence: str,
    *,
    group: str,
    cases: Space[Any],
    **options: Any,
) -> Callable[[Check], Callable[[Any], None]]:
    """Register a check as a clause and turn it into a pytest test that takes one `trial`.

    The test is parametrised by the plugin: one trial for each subject and dtype of the chosen target.

    Raises:
        ValueError: if the id is taken, or the group or an option is unknown.
    """

    def register(check: Check) -> Callable[[Any], None]:
        if id in REGISTRY and REGISTRY[id].source != check.__module__:
            raise ValueError(f"clause {id} is declared in {REGISTRY[id].source} and again in {check.__module__}")
        if group not in GROUPS:
            raise ValueError(f"clause {id} names the group {group!r}: expected one of {', '.join(GROUPS)}")
        declared = Clause(id, " ".join(sentence.split()), group, check, cases, source=check.__module__, **options)
        REGISTRY[id] = declared

        def test(trial: Any) -> None:
            trial.run()

        test.__name__ = check.__name__
        test.__doc__ = declared.sentence
        test.clause = declared  # type: ignore[attr-defined]
        return test

    return register


def checks_of(*modules: ModuleType) -> dict[str, Any]:
    """The test function of every clause in these modules, by name, in their order.

    Raises:
        ValueError: if two tests have one name, as pytest would see only the last.
    """
    found: dict[str, Any] = {}
    for module in modules:
        for name, value in vars(module).items():
            if not name.startswith("test_") or not hasattr(value, "clause"):
                continue
            if found.setdefault(name, value) is not value:
                raise ValueError(f"{value.clause.id} and {found[name].clause.id} both have a test {name}")
    return found


def load_all(groups: Iterable[str] = GROUPS) -> dict[str, Clause]:
    """Import the clauses of these groups and return the registry, in declaration order by group."""
    import importlib

    for group in groups:
        importlib.import_module(f"conformance.test_{group}")
    return REGISTRY
