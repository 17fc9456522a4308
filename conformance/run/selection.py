"""The selection of a run: its target, clauses, dtypes, device and lane. This module does not import torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from conformance.errors import UsageError, known
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.report.assemble import RunSettings
from conformance.run.profiles import PROFILES, Profile
from conformance.specification.former_ids import presents
from conformance.specification.groups import groups

LANES = ("cpu", "interpreter", "gpu")


@dataclass(frozen=True)
class Selection:
    """The trials that a run should judge.

    Attributes:
        target: `package.module` or `package.module:attribute`.
        groups, clauses, dtypes: the names to which the run is restricted; empty for no restriction. Clauses may have
            wildcards, as in `LIN-FWD*`.
        excluded: the clauses and groups that are left out; they may have wildcards too.
        lane: the lane to which the run is restricted; None for every lane that this machine has.
        deviations: the clauses that are expected to fail, each with the reason, beside those that the target declares.
        profile: the name of a profile, which sets the number of cases.   seed: the seed of the cases.
        shard: `i/n` for the i-th of n parts of the trials; None for all trials.
    """

    target: str
    groups: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    deviations: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"
    lane: str | None = None
    profile: str = "default"
    seed: int = 0
    shard: str | None = None

    def __post_init__(self) -> None:
        """Check every name that can be checked without importing the target.

        Raises:
            UsageError: for an unknown group, dtype, lane or profile, a lane that excludes the device, or a malformed
                shard.
        """
        for name in ("clauses", "excluded"):
            object.__setattr__(self, name, presents(getattr(self, name)))
        known(self.groups, groups(), "group")
        known(self.dtypes, FLOAT_DTYPES, "dtype")
        known([self.profile], PROFILES, "profile")
        if self.shard is not None:
            shard_numbers(self.shard)
        known([self.lane] if self.lane else [], LANES, "lane")
        kind = self.device.partition(":")[0]
        known([kind], ("cpu", "cuda"), "device")
        if self.lane == "gpu" and kind == "cpu":
            object.__setattr__(self, "device", "cuda")
        elif self.lane in ("cpu", "interpreter") and kind != "cpu":
            raise UsageError(f"lane {self.lane!r} runs on the CPU but the device is {self.device!r}")

    @classmethod
    def of(cls, target: str, **options: Any) -> Selection:
        """A selection from the options of a command line. Lists may contain commas; None means the default."""
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        for name in ("groups", "clauses", "dtypes", "excluded"):
            words = [word.strip() for item in given.get(name, ()) for word in item.split(",")]
            given[name] = tuple(dict.fromkeys(word for word in words if word))
        return cls(target, **given)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Selection:
        """The selection of a dictionary from `dataclasses.asdict`, which may have been stored as JSON."""
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**{**given, "deviations": tuple((clause, reason) for clause, reason in given.get("deviations", ()))})

    @property
    def cases(self) -> Profile:
        """The profile with the seed of this selection."""
        return dataclasses.replace(PROFILES[self.profile], seed=self.seed)

    def includes(self, clause: str, group: str) -> bool:
        """Whether the selection includes a clause."""
        named = not self.clauses or _matches(clause, self.clauses)
        return named and self.includes_group(group) and not _matches(clause, self.excluded)

    def includes_group(self, group: str) -> bool:
        """Whether the selection includes a group; some of its clauses may be excluded."""
        return (not self.groups or group in self.groups) and not _matches(group, self.excluded)

    @property
    def narrowed(self) -> bool:
        """Whether the selection leaves out parts of clauses. A clause that passes here may then fail in a full run."""
        return bool(self.dtypes or self.shard) or self.lane in ("cpu", "interpreter")

    @property
    def settings(self) -> RunSettings:
        """The settings that the report depends on."""
        return RunSettings(self.profile, self.seed, self.lane, self.shard, self.narrowed)

    def lists(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each restricting option with its names; empty for no restriction."""
        return (
            ("group", self.groups),
            ("clause", self.clauses),
            ("dtype", self.dtypes),
            ("exclude", self.excluded),
        )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def shard_numbers(shard: str) -> tuple[int, int]:
    """The i and n of `i/n`.

    Raises:
        UsageError: if the text does not have this form, or i is not one of 1 … n.
    """
    number, slash, count = shard.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise UsageError(f"shard {shard!r} is not valid: expected i/n with 1 ≤ i ≤ n, as in 2/5")


def gpu_at_hand() -> bool:
    """Whether this machine seems to have a GPU; found without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    dev = Path("/dev")
    return any(dev.glob("nvidia[0-9]*")) or (dev / "dxg").exists() or (dev / "kfd").exists()


def set_interpreter(lane: str | None, device: str, gpu: bool) -> bool:
    """Turn Triton's interpreter on or off, for this process and its children, before Triton is imported.

    Without a lane and without a GPU, the interpreter is turned on, so that Triton subjects can run their kernels. A
    value that the environment already has is kept in that case.
    """
    variable = "TRITON_INTERPRET"
    if lane == "interpreter" or (lane is None and device == "cpu" and not gpu):
        os.environ.setdefault(variable, "1")
        if lane == "interpreter":
            os.environ[variable] = "1"
    elif lane in ("cpu", "gpu") or device != "cpu":
        os.environ.pop(variable, None)
    return os.environ.get(variable) == "1"
