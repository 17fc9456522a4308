"""A target: the module or object under test, the groups it claims, and its subjects."""

from __future__ import annotations

import importlib
import importlib.util
import os
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from conformance.errors import TargetError
from conformance.isolation.monkeypatches import PRISTINE
from conformance.isolation.process_state import settings_restored
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.specification.clause import Clause
from conformance.specification.features import ABSENT, FEATURES
from conformance.specification.former_ids import present_reasons
from conformance.specification.groups import groups
from conformance.target.binding_errors import binding_errors
from conformance.target.declaration import check_declaration, read_deviations
from conformance.target.fault import looking_at
from conformance.target.features import DROPOUT_POSITIONS, is_local, positions
from conformance.target.installed_packages import uninstalled
from conformance.target.layer_form import LAYERS
from conformance.target.limits import LIMITS, refused
from conformance.target.signature import accepts
from conformance.target.subject import Subject

TRITON = ("TritonLinearLoRA", "LoRATritonFunction")


@dataclass(frozen=True)
class Target:
    """The module or object under test, with its declaration `CONFORMANCE`.

    Attributes:
        spec: its name, `package.module` or `package.module:attribute`.   thing: the module or object.
        device: the device it runs on (`cpu`, `cuda`).
    """

    spec: str
    thing: Any
    device: str = "cpu"
    declared: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, spec: str, device: str = "cpu") -> Target:
        """Import a target by name.

        Raises:
            TargetError: if the import fails or the attribute is missing, with the cause.
        """
        module_name, _, attribute = spec.partition(":")
        if not module_name or module_name.startswith(".") or "/" in spec or module_name.endswith(".py"):
            raise TargetError(f"target {spec!r} is not an importable name: expected package.module[:attribute]")
        PRISTINE.begin()
        try:
            with PRISTINE.suspended(), settings_restored():
                thing: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and module_name.split(".")[0] == error.name.split(".")[0]:
                raise TargetError(f"target {spec!r} does not import: no module named {error.name!r}") from error
            raise TargetError(f"target {spec!r} raised on import: {_described(error)}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise TargetError(f"target {spec!r} raised on import: {_described(error)}") from error
        with looking_at(spec):
            for part in attribute.split(".") if attribute else ():
                if not hasattr(thing, part):
                    raise TargetError(f"target {spec!r}: {thing!r} has no attribute {part!r}")
                thing = getattr(thing, part)
            return cls._of(thing, spec, device)

    @classmethod
    def of(cls, thing: Any, spec: str = "", device: str = "cpu") -> Target:
        """Wrap an object that exposes public names of `reference`.

        Raises:
            TargetError: if its `CONFORMANCE` declaration is malformed.
        """
        PRISTINE.begin()
        return cls._of(thing, spec, device)

    @classmethod
    def _of(cls, thing: Any, spec: str, device: str) -> Target:
        declared = getattr(thing, "CONFORMANCE", {})
        check_declaration(declared, spec)
        declared = dict(declared)
        if isinstance(declared.get("deviations"), str | Path):
            declared["deviations"] = read_deviations(thing, spec, declared["deviations"])
        return cls(spec or getattr(thing, "__name__", type(thing).__name__), thing, device, declared)

    @property
    def name(self) -> str:
        """The declared name, otherwise `spec`."""
        return str(self.declared.get("name", self.spec))

    @property
    def version(self) -> str | None:
        """The declared version, otherwise the target's `__version__`; None if it has neither."""
        if "version" in self.declared:
            return str(self.declared["version"])
        return getattr(self.thing, "__version__", None)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The declared dtypes; by default all."""
        return tuple(self.declared.get("dtypes", FLOAT_DTYPES))

    @property
    def devices(self) -> tuple[str, ...]:
        """The declared devices; by default all."""
        return tuple(self.declared.get("devices", ("cpu", "cuda")))

    @property
    def deviations(self) -> dict[str, str]:
        """The clauses that the target declares not to meet, each with a reason."""
        return present_reasons(self.declared.get("deviations", {}))

    @property
    def dropout_positions(self) -> tuple[str, ...]:
        """The declared dropout positions; by default `pre` and `post`."""
        return tuple(self.declared.get("dropout_positions", DROPOUT_POSITIONS))

    def has(self, name: str) -> bool:
        """Whether the target exposes a public name: `f`, `Class.method`, or `Class(argument)`."""
        if name.endswith(")"):
            owner, _, argument = name[:-1].partition("(")
            return self.has(owner) and accepts(getattr(self.thing, owner), argument)
        first, _, rest = name.partition(".")
        thing = getattr(self.thing, first, None)
        if rest and thing is not None and not isinstance(thing, type):
            thing = self._built(first)  # the name is a function that returns a module: look at the module
        return thing is not None and (not rest or hasattr(thing, rest))

    def _built(self, name: str) -> Any:
        """A small layer from a callable that is not a class; None if the call fails."""
        from torch import nn

        try:
            return getattr(self.thing, name)(nn.Linear(2, 2), 1)
        except Exception:  # noqa: BLE001  (the clauses will report the error)
            return None

    @cached_property
    def claimed(self) -> tuple[str, ...]:
        """The groups of which the target exposes all required names, or a subject that is judged alone."""
        return tuple(
            name for name, group in groups().items() if not self.missing(name) or any(map(self.has, group.alone))
        )

    def missing(self, group: str) -> tuple[str, ...]:
        """The group's required names that the target lacks; with all of them, its feature if that is absent."""
        names = tuple(name for name in groups()[group].required if not self.has(name))
        feature = groups()[group].feature
        return names or self._absent((feature,) * bool(feature), group)

    def _absent(self, names: tuple[str, ...], group: str) -> tuple[str, ...]:
        """Those of some features that the target lacks in a group, as a report names them."""
        return tuple(f"feature {FEATURES[name].title}" for name in names if self.feature(name, group) == ABSENT)

    def lacking(self, clause: Clause) -> tuple[str, ...]:
        """The missing names for this clause: its own, and those of its group, or of its subjects if judged alone."""
        alone = clause.subjects if _is_alone(clause) else groups()[clause.group].required
        missing = dict.fromkeys(name for name in (*alone, *clause.needs) if not self.has(name))
        absent = tuple(missing) or self._absent(clause.features, clause.group)[:1] or self._otherwise(clause)
        if (
            absent
            or not clause.position
            or any(clause.position in self.positions(name) for name in self._judged(clause))
        ):
            return absent
        return (f"dropout position {clause.position}",)

    def _otherwise(self, clause: Clause) -> tuple[str, ...]:
        """The convention that a clause needs, where the target follows another."""
        name, _, value = clause.convention.partition("=")
        follows = not name or self.feature(name, clause.group) == value
        return () if follows else (f"feature {FEATURES[name].title}: {value}",)

    def _judged(self, clause: Clause) -> tuple[str, ...]:
        """The names of the target that a clause judges, at whatever dropout position."""
        names = clause.subjects or _together(clause.group)
        return tuple(name for name in groups()[clause.group].subjects if self.has(name) and name in names)

    def feature(self, name: str, group: str) -> str:
        """Whether the target has a feature in a group: as declared, else as the signature of its callable shows."""
        declared = self.declared.get("features", {}).get(name)
        if declared is not None:
            return str(declared)
        if name == "pickling" and is_local(getattr(self.thing, "LinearLoRA", None)):
            return ABSENT
        whole = FEATURES[name].part_of
        if (whole and self.feature(whole, group) == ABSENT) or (group != "linear" and name in self._refused):
            return ABSENT
        argument = FEATURES[name].arguments.get(group)
        if argument is None:
            return self._found(group).get(name, FEATURES[name].conventions[0])
        return FEATURES[name].conventions[0] if self.has(argument) else ABSENT

    def shown(self, group: str) -> Mapping[str, str]:
        """The conventions of a group's features that the target shows when it is called, where one is unmistakable."""
        if group not in self._shown:
            probe = groups()[group].shown
            self._shown[group] = {} if probe is None or self.missing(group) else dict(probe(self.thing))
        return self._shown[group]

    def _found(self, group: str) -> dict[str, str]:
        return {name: value for name, value in self.shown(group).items() if value in FEATURES[name].conventions}

    @cached_property
    def _shown(self) -> dict[str, Mapping[str, str]]:
        return {}

    def conventions(self, claimed: Iterable[str]) -> dict[str, str]:
        """By feature the convention that the target follows in the claimed groups, where it is not the default."""
        claimed = list(claimed)
        seen = {name: value for group in claimed for name, value in self._found(group).items()}
        found = seen | self.declared.get("features", {})
        found = {name: value for name, value in found.items() if value not in (FEATURES[name].conventions[0], ABSENT)}
        dropping = [group for group in claimed if self.feature("dropout", group) != ABSENT]
        subjects = [name for group in dropping for name in groups()[group].subjects if name in (*LAYERS, "lora_linear")]
        positions = {self.positions(name) for name in subjects if self.has(name)}
        if len(positions) == 1 and len(only := positions.pop()) == 1:
            found["dropout"] = only[0]
        return found

    @cached_property
    def _refused(self) -> frozenset[str]:
        """The features whose values the layer class refuses."""
        return refused(getattr(self.thing, "LinearLoRA", None))

    def positions(self, subject: str) -> tuple[str, ...]:
        """The dropout positions of a subject: as declared, else as its signature or its behaviour shows."""
        if "dropout_positions" in self.declared or not subject.endswith("LinearLoRA"):
            return self.dropout_positions
        if subject not in self._positions:
            self._positions[subject] = positions(getattr(self.thing, subject))
        return self._positions[subject]

    @cached_property
    def _positions(self) -> dict[str, tuple[str, ...]]:
        return {}

    def subjects(self, clause: Clause) -> tuple[Subject, ...]:
        """The subjects of this target that the clause judges; none if the target does not claim the clause."""
        if self.lacking(clause):
            return ()
        if not self.dropout_positions and 0.0 not in clause.cases.values.get("dropout", (0.0,)):
            return ()
        if uninstalled(clause) or elsewhere(clause, self.device):
            return ()
        return tuple(
            self.subject(name, clause.group)
            for name in self._judged(clause)
            if not clause.position or clause.position in self.positions(name)
        )

    def subject(self, name: str, group: str = "") -> Subject:
        """One of the target's public names as a subject; with the conventions that it shows for clauses of a group."""
        thing = getattr(self.thing, name)
        shown = self.shown(group) if group else {}
        followed = {key: value for key, value in shown.items() if value != FEATURES[key].conventions[0]}
        followed |= self.declared.get("features", {})
        lacking = ("dropout", "alpha", *LIMITS) if name.endswith("LinearLoRA") else ()
        followed |= {key: ABSENT for key in (*lacking, "pickling") if self.feature(key, "layer") == ABSENT}
        conventions = tuple(sorted(followed.items()))
        return Subject(name, thing, self.thing, self.device, self.lane(name), self.positions(name), conventions)

    def lane(self, subject: str) -> str:
        """How a subject runs: `gpu`; on a CPU, `interpreter` for Triton names if the interpreter is on, else `cpu`."""
        if self.device != "cpu":
            return "gpu"
        interpreting = os.environ.get("TRITON_INTERPRET") == "1"
        return "interpreter" if subject in TRITON and interpreting else "cpu"

    def binding_errors(self) -> list[str]:
        """Messages about callables that do not take their arguments, and about features that are declared wrongly."""
        return binding_errors(self)


def elsewhere(clause: Clause, device: str) -> bool:
    """Whether a clause is judged on the CPU only, and this is another device."""
    return groups()[clause.group].cpu_only and device != "cpu"


def _is_alone(clause: Clause) -> bool:
    return bool(clause.subjects) and set(clause.subjects) <= set(groups()[clause.group].alone)


def _together(group: str) -> tuple[str, ...]:
    """The subjects that a clause judges if it names none."""
    return tuple(name for name in groups()[group].subjects if name not in groups()[group].alone)


def _described(error: BaseException) -> str:
    """Type, message and source line of an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    place = f" ({outside[-1].filename}, line {outside[-1].lineno})" if outside else ""
    return f"{type(error).__name__}: {error}{place}"
