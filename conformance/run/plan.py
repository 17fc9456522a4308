"""The smoke check: import the target, check its claims and its bindings, and plan the run.

The check runs in a separate process (see `conformance.run.nursery`), since importing a target may have any effect.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys
import traceback
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.errors import UsageError, known, matched
from conformance.report.plan import Plan, PlannedClause, PlannedGroup, PlannedTrial, Sources, TargetInfo
from conformance.run.selection import Selection, set_interpreter
from conformance.run.smoke_check import SmokeCheck
from conformance.specification.versions import SPECS
from conformance.target.fingerprint import fingerprint
from conformance.target.layer_form import LAYERS, LayerForm
from conformance.target.source_location import defined

if TYPE_CHECKING:
    from conformance.run.trial import Trial

RIGHT = "reference"  # a target that can be planned wherever the suite is not at fault


def plan(selection: Selection) -> Plan:
    """The plan of a run of this selection.

    Raises:
        UsageError: if the target cannot be imported, binds wrongly, or claims none of the chosen groups.
    """
    import torch

    from conformance.errors import TargetError
    from conformance.specification.clause import load_all
    from conformance.target.fault import looking_at

    cuda = torch.cuda.is_available()
    if selection.device != "cpu" and not cuda:
        raise UsageError(f"device {selection.device!r} asked for but torch {torch.__version__} sees no CUDA GPU here")
    interpreting = set_interpreter(selection.lane, selection.device, cuda)
    matched(selection.clauses, load_all(), "clause")
    try:
        with looking_at(selection.target, partial(_is_right, selection)):
            return _plan(selection, interpreting=interpreting)
    except TargetError as error:
        raise UsageError(str(error)) from error


def _is_right(selection: Selection) -> bool:
    """Whether `reference` can be planned in place of the target."""
    if selection.target == RIGHT:
        return False
    try:
        _plan(dataclasses.replace(selection, target=RIGHT), interpreting=False)
    except UsageError:
        return True
    except Exception:  # noqa: BLE001  (so the suite is at fault, not the target)
        return False
    return True


def _plan(selection: Selection, *, interpreting: bool) -> Plan:
    from conformance.run.trial import loaded, trials
    from conformance.specification.clause import load_all
    from conformance.target.installed_packages import uninstalled
    from conformance.target.target import elsewhere

    clauses = load_all()
    target = loaded(selection.target, selection.device)
    _check_claims(target, selection, list(clauses))
    chosen = [c for c in clauses.values() if selection.includes(c.id, c.group)]
    planned = []
    for clause in chosen:
        missing = tuple(target.lacking(clause))
        offered = trials(clause, target, selection)
        if offered or missing or not target.subjects(clause):
            one = PlannedClause(
                id=clause.id,
                group=clause.group,
                level=clause.level,
                sentence=clause.sentence,
                feature=next(iter(clause.features), ""),
                missing=missing,
                uninstalled=tuple(uninstalled(clause)),
                elsewhere=elsewhere(clause, selection.device),
                trials=tuple(map(_planned, offered)),
            )
            planned.append(one)
    _check_anything_runs(target, selection, chosen, planned)
    groups = dict.fromkeys(clause.group for clause in planned)
    expected = target.deviations | dict(selection.deviations)
    return Plan(
        spec=SPECS[-1],
        target=TargetInfo(target.spec, target.name, _version(target), fingerprint(target.spec)),
        versions=versions(),
        device=selection.device,
        device_name=device_name(selection.device),
        interpreting=interpreting,
        groups={group: PlannedGroup(group in target.claimed, tuple(target.missing(group))) for group in groups},
        clauses=tuple(planned),
        deviations={k: v for k, v in expected.items() if any(k == clause.id for clause in planned)},
        sources=_sources(target, planned),
        forms=_forms(target, groups),
        conventions=target.conventions(group for group in groups if group in target.claimed),
    )


def _forms(target: Any, chosen: Iterable[str]) -> tuple[LayerForm, ...]:
    """What is missing or of another form in the target's layers, where a chosen group that it claims uses them."""
    from conformance.run.preflight import looked_at
    from conformance.specification.groups import groups

    claimed = [groups()[name] for name in chosen if name in target.claimed]
    if all({*group.required, *group.subjects}.isdisjoint(LAYERS) for group in claimed):
        return ()
    return looked_at(target, dora=any(group.prefix == "DORA" for group in claimed))


def _sources(target: Any, planned: list[PlannedClause]) -> Sources:
    """For each subject, the file and line where the target defines it."""
    module = sys.modules[target.spec.partition(":")[0]]
    subjects = dict.fromkeys(trial.key.subject for clause in planned for trial in clause.trials)
    return {subject: defined(module, target.thing, subject) for subject in subjects}


def _planned(trial: Trial) -> PlannedTrial:
    lane = trial.subject.lane
    cases = trial.profile.cases(trial.clause, lane, trial.drawn_dtype, whole=trial.whole) if trial.declared else 1
    return PlannedTrial(trial.key, lane, trial.declared, cases)


def _check_claims(target: Any, selection: Selection, ids: list[str]) -> None:
    """Raise UsageError if the target contradicts itself or the selection."""
    from conformance.specification.groups import groups

    known(target.deviations, ids, f"clause in {target.spec}.CONFORMANCE['deviations']:")
    kind = selection.device.partition(":")[0]
    if kind not in target.devices:
        raise UsageError(f"target {target.spec!r} declares the devices {', '.join(target.devices)}, not {kind!r}")
    chosen = [group for name, group in groups().items() if selection.includes_group(name)]
    names = {n.partition(".")[0].partition("(")[0] for group in chosen for n in (*group.required, *group.subjects)}
    problems = [p for p in target.binding_errors() if p.partition("(")[0].partition(" ")[0] in names]
    if problems:
        raise UsageError("\n".join([f"target {target.spec!r} does not bind:", *(f"  {p}" for p in problems)]))


def _check_anything_runs(target: Any, selection: Selection, chosen: list[Any], planned: list[PlannedClause]) -> None:
    """Raise UsageError if the plan has no trial that judges the target."""
    if any(trial.declared for clause in planned for trial in clause.trials):
        return
    if any(clause.trials for clause in planned):
        asked = ", ".join(selection.dtypes) or "the clauses' dtypes"
        raise UsageError(f"target {target.spec!r} declares {', '.join(target.dtypes)}: nothing to judge in {asked}")
    if selection.lane and any(target.subjects(clause) for clause in chosen):
        raise UsageError(f"target {target.spec!r} has no subject that runs in lane {selection.lane!r} here")
    groups = dict.fromkeys(clause.group for clause in planned)
    lacking = {group: target.missing(group) for group in groups if target.missing(group)}
    if lacking:
        listed = "\n".join(f"  {group:<9} lacks {', '.join(names)}" for group, names in lacking.items())
        raise UsageError(f"target {target.spec!r} claims none of the chosen groups:\n{listed}")
    raise UsageError(f"target {target.spec!r} has nothing to judge in the chosen groups and clauses")


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that a run depends on; None for a package that is not installed."""
    names = ("loraspec", "torch", "triton", "numpy", "hypothesis", "pytest")
    return {"python": platform.python_version(), **{name: _installed(name) for name in names}}


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(target: Any) -> str | None:
    if target.version is not None:
        return str(target.version)
    top = target.spec.partition(":")[0].partition(".")[0]
    providers = distributions().get(top, [])
    return _installed(providers[0]) if providers else None


@cache
def distributions() -> Mapping[str, list[str]]:
    """The installed distributions that provide each top-level name."""
    return importlib.metadata.packages_distributions()


def device_name(device: str) -> str:
    """The name of the processor or GPU."""
    import torch

    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def checked(selection: Selection) -> SmokeCheck:
    """The plan of a run of this selection, or the reason why it cannot be planned."""
    try:
        return SmokeCheck(plan(selection))
    except UsageError as error:
        return SmokeCheck(error=str(error))
    except Exception:  # noqa: BLE001  (the command reports any other exception as a failure of the suite)
        return SmokeCheck(failure=traceback.format_exc())
