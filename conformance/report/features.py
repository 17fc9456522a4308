"""The core and the features of a target in a report: how many clauses of each pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from conformance.judgement.result import NOT_CLAIMED, PASS, UNSUPPORTED
from conformance.report.report import Claim, Report, ReportedClause
from conformance.specification.clause import MUST
from conformance.specification.features import FEATURES


@dataclass(frozen=True)
class Claims:
    """The claims of a target: its core, and each feature of the groups that it claims, by name."""

    core: Claim
    features: Mapping[str, Claim]


def claims(clauses: Iterable[ReportedClause], claimed: Iterable[str]) -> Claims:
    """Count the MUST clauses of the claimed groups, those of the core and those of each feature."""
    groups = set(claimed)
    members = [clause for clause in clauses if clause.group in groups and clause.level == MUST]
    by_feature = {name: [clause for clause in members if clause.feature == name] for name in FEATURES}
    return Claims(
        _claim([clause for clause in members if not clause.feature]),
        {name: _claim(found) for name, found in by_feature.items() if found},
    )


def _claim(clauses: list[ReportedClause]) -> Claim:
    judged = [clause for clause in clauses if clause.status not in (NOT_CLAIMED, UNSUPPORTED)]
    return Claim(sum(clause.status == PASS for clause in judged), len(judged))


def line(report: Report) -> str:
    """The claims in words: `core 41 of 41; features: dropout pre ✓, rsLoRA absent`; empty where nothing was judged."""
    core = report.core
    if core is None or not core.judged:
        return ""
    features = {name: claim for name, claim in report.features.items() if name in FEATURES}
    words = [f"{FEATURES[name].title} {_word(claim, report.conventions.get(name))}" for name, claim in features.items()]
    return f"core {core.passed} of {core.judged}" + (f"; features: {', '.join(words)}" if words else "")


def _word(claim: Claim, convention: str | None) -> str:
    """What became of a feature, after the convention that it follows."""
    if not claim.judged:
        return "absent"
    passed = "✓" if claim.passed == claim.judged else f"✗ ({claim.judged - claim.passed} of {claim.judged} fail)"
    return f"{convention} {passed}" if convention else passed
