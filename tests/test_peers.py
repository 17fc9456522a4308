"""What the suite says of the layers that people use, at the versions of ci/constraints.txt; each was looked into."""

from __future__ import annotations

import importlib

import pytest

from conformance.clause import MUST, load_all
from conformance.examine import Examination
from conformance.profiles import Profile
from conformance.target import Target

FINDINGS = {
    # a merged state_dict is the merged one; a 1-D x gains a dimension; a zero row gives NaN
    "peft": {"MRG-STATE", "DORA-LEAD", "DORA-ZERO-ROW"},
    # no cast of x to the adapter's dtype; a lambda in the layer that pickle refuses
    "loralib": {"LAY-FWD-MIXED", "LAY-BWD-MIXED", "LAY-COPY"},
    "torchtune": {"LAY-FWD-MIXED", "LAY-BWD-MIXED"},
}
SLOW = ("LAY-COMPILE", "LAY-MEM-LEAK")
FEW = Profile("few", volume=2, interpreted=1, shrinks=0)


@pytest.mark.filterwarnings("ignore")  # a peer may warn: of merging twice, of parts that are missing on a CPU
@pytest.mark.parametrize("name", FINDINGS)
def test_findings_in_a_peer(name: str) -> None:
    pytest.importorskip(name)
    target = Target.of(importlib.import_module(f"conformance.targets.{name}"), name)
    failed = {}
    for clause in load_all().values():
        if clause.level != MUST or clause.id in SLOW:
            continue
        dtype = "float32" if "float32" in clause.dtypes else (*clause.dtypes, "any")[0]
        for subject in target.subjects(clause):
            result = Examination(clause, subject, dtype, FEW).run()
            if result.status != "pass":
                failed[clause.id] = result.message
    assert set(failed) == FINDINGS[name] | set(target.deviations) & set(failed), failed
    assert set(target.deviations) <= set(load_all())
