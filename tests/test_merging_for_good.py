"""A layer that merges for good, without an unmerge, is judged by what merging alone can show."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from conformance.clauses.life.layer import LIVES
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.test_features import Plain

FEW = dataclasses.replace(PROFILES["quick"], volume=3, shrinks=0)
CLAUSES = {name: clause for name, clause in load_all(("merge",)).items() if name.startswith("MRG-")}
SHOWN = {"MRG-FWD", "MRG-WEIGHT", "MRG-BWD", "MRG-RANK", "MRG-STATE", "MRG-MODE"}


class ForGood(Plain):
    """A right layer that merges for good."""

    times, merged = 1.0, False

    def merge(self) -> None:
        if not self.merged:
            with torch.no_grad():
                self.weight.add_(self.lora_B.weight @ self.lora_A.weight, alpha=self.times * self.scaling)
            self.merged = True

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) if self.merged else super().forward(x)


class Halved(ForGood):
    """The same with half of the update."""

    times = 0.5


class NoRslora(ForGood):
    """The same with an argument for rsLoRA, which has no effect; the target declares the feature absent."""

    def __init__(self, base: nn.Linear, r: int = 4, lora_alpha: int = 16, *, use_rslora: bool = False) -> None:
        super().__init__(base, r, lora_alpha)


def target_of(kind: type[ForGood]) -> Target:
    """A target with this layer, whose declaration says that its state_dict is merged with it."""
    declared = {"features": {"merged_state": "merged", "rslora": "absent"}}
    return Target.of(SimpleNamespace(LinearLoRA=kind, CONFORMANCE=declared), "mine")


def statuses(kind: type[ForGood]) -> dict[str, str]:
    """The statuses of the clauses of group `merge` that the layer claims."""
    target = target_of(kind)
    claimed = [clause for clause in CLAUSES.values() if not target.lacking(clause)]
    return {c.id: Examination(c, *target.subjects(c), "float32", FEW).run().status for c in claimed}


def test_a_layer_without_unmerge_claims_the_clauses_on_merging_alone() -> None:
    assert statuses(ForGood) == dict.fromkeys(SHOWN, "pass")
    lacking = {target_of(ForGood).lacking(clause) for name, clause in CLAUSES.items() if name not in SHOWN}
    assert lacking == {("LinearLoRA.unmerge",)}


def test_an_absent_rslora_is_not_asked_for_when_merging() -> None:
    (subject,) = target_of(NoRslora).subjects(CLAUSES["MRG-RANK"])
    assert Examination(CLAUSES["MRG-RANK"], subject, "float32", FEW).run().status == "pass"


def test_a_wrong_merge_for_good_fails() -> None:
    failing = {name for name, status in statuses(Halved).items() if status == "fail"}
    assert failing == SHOWN


def test_lives_do_not_merge_a_layer_that_cannot_be_unmerged() -> None:
    (subject,) = target_of(ForGood).subjects(load_all(("life",))["LIFE-LAYER-FWD"])
    assert {"merge", "unmerge"} <= LIVES.lacking(subject)
