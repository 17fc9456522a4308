"""Merge shards: build the report of the whole run from the report folders of all its shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from conformance.errors import UsageError
from conformance.report.assemble import assemble
from conformance.report.files import finish, write
from conformance.report.outcome import Outcome
from conformance.report.report import Report
from conformance.run.journal import NAME, Journal, Recorded, differences, joined, listed, read
from conformance.run.selection import shard_numbers


def merge_shards(folders: Sequence[Path], into: Path) -> Report:
    """Write and return the same report as one run of all trials, apart from times.

    Raises:
        UsageError: if the folders do not hold every shard of one run, each of them finished. No file is written then.
    """
    if into.resolve() in {folder.resolve() for folder in folders}:
        raise UsageError(f"--report-dir {str(into)!r} is a shard's own folder: expected another one for the whole")
    shards = {folder: _read(folder) for folder in folders}
    _check_alike(shards)
    _check_complete(shards)
    recorded = list(shards.values())
    selection, plan = dataclasses.replace(recorded[0].selection, shard=None), recorded[0].plan
    plan = dataclasses.replace(plan, device_name=joined([name for shard in recorded for name in shard.devices]))
    outcome = Outcome()
    for shard in recorded:
        outcome.results |= shard.outcome.results
        outcome.scripts |= shard.outcome.scripts
        outcome.errors += [error for error in shard.outcome.errors if error not in outcome.errors]
    Journal.begin(into, selection, plan).record(outcome)
    report = assemble(plan, outcome, selection.settings)
    report = finish(report, round(sum(shard.seconds for shard in recorded), 1))
    write(into, report, outcome.reproducers(plan))
    return report


def _read(folder: Path) -> Recorded:
    recorded = read(folder)
    if recorded is None:
        raise UsageError(f"{str(folder)!r} is no report folder of a shard: it has no {NAME}")
    if recorded.selection.shard is None:
        raise UsageError(f"{str(folder)!r} holds a whole run: expected a shard's report folder (--shard i/n)")
    return recorded


def _check_alike(shards: dict[Path, Recorded]) -> None:
    """Raise UsageError, naming the differences, unless all shards belong to one run."""
    (first, one), *others = shards.items()
    for folder, other in others:
        found = differences(_unsharded(one), _unsharded(other), f"in {str(first)!r}", f"in {str(folder)!r}")
        if found:
            raise UsageError(listed("these are shards of different runs, which differ:", found))


def _unsharded(recorded: Recorded) -> Recorded:
    return dataclasses.replace(recorded, selection=dataclasses.replace(recorded.selection, shard=None))


def _check_complete(shards: dict[Path, Recorded]) -> None:
    """Raise UsageError, naming the shards at fault, unless each shard occurs exactly once and is finished."""
    counts = {shard_numbers(str(r.selection.shard))[1]: str(folder) for folder, r in shards.items()}
    if len(counts) > 1:
        each = " and ".join(f"of {count} in {folder!r}" for count, folder in counts.items())
        raise UsageError(f"these are shards of different runs: {each}")
    found: dict[str, Path] = {}
    for folder, recorded in shards.items():
        shard = str(recorded.selection.shard)
        if shard in found:
            raise UsageError(f"{str(found[shard])!r} and {str(folder)!r} overlap: both are shard {shard}")
        found[shard] = folder
    (count,) = counts
    missing = [f"{number}/{count}" for number in range(1, count + 1) if f"{number}/{count}" not in found]
    if missing:
        raise UsageError(f"of {count} shards, these are missing: {', '.join(missing)}")
    cut_off = [
        f"shard {shard} in {str(folder)!r}: {len(left)} trials, {' '.join(left[0])} first"
        for shard, folder in found.items()
        if (left := shards[folder].left) and not shards[folder].outcome.errors
    ]
    if cut_off:
        raise UsageError(listed("these shards were cut off (continue them with --resume) and lack results:", cut_off))
