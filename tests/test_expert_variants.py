"""Right but different grouped layers and experts: every MUST clause of the group passes on them."""

from __future__ import annotations

import dataclasses
import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.judgement.result import ANY_DTYPE
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import MUST, load_all
from conformance.target.target import Target
from reference.experts_module import expected_projections
from tests.baselines.expert_modules import RightExperts, RightModules
from tests.baselines.experts import Right

SOME = dataclasses.replace(PROFILES["quick"], volume=3, margin=None, shrinks=0)
RIGHT = Right()


class Folds(RightExperts):
    """Experts that add the update to the weight in each call, as PEFT does."""

    def project(self, rows: Tensor, index: Tensor, name: str) -> Tensor:
        A, B, scale = self._adapter_of(name, getattr(self, name).mT if self.is_transposed else getattr(self, name))
        weight = getattr(self, name).mT if self.is_transposed else getattr(self, name)
        if self.training and self.dropout_p == 1:
            B = B * 0
        merged = weight + (B @ A * scale).to(weight.dtype)
        y = rows.new_zeros(len(rows), weight.shape[1]) + 0 * merged.sum()
        for e in range(len(weight)):
            own = (index == e).nonzero().flatten()
            bias = getattr(self, f"{name}_bias")[e] if self.has_bias else None
            y = y.index_copy(0, own, F.linear(rows[own], merged[e], bias).to(y.dtype))
        return y


class WeighsBetween(RightExperts):
    """Experts that multiply by the router's weight between the projections: then the second bias is multiplied too."""

    def of_rows(self, rows: Tensor, index: Tensor) -> Tensor:
        up, down = expected_projections(self)
        act: Any = self._apply_gate if self.has_gate else self.act_fn
        h = act(self.project(rows, index, up))
        present = ((index >= 0) & (index < self.num_experts)).unsqueeze(1)
        p = torch.where(present, self.weights, 0.0)
        y = self.project(h * p, index, down)
        if self.has_bias:
            bias = self.down_proj_bias[index.clamp(0, self.num_experts - 1)]
            y = y - torch.where(present, bias, 0.0) * (1 - p)
        return y

    def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Tensor:
        self.weights = top_k_weights.reshape(-1, 1)
        return super().forward(hidden_states, top_k_index, top_k_weights)

    def per_slot(self, y: Tensor, p: Tensor, present: Tensor) -> Tensor:
        return super().per_slot(y, torch.ones_like(p), present)


class FoldsRows(Right):
    """A grouped layer that multiplies by ``W + s·B A``."""

    def output(self, x: Tensor, p: Any, mask: Any) -> Tensor:
        if p.weight is None or any(part is not None for part in mask):
            return super().output(x, p, mask)
        return F.linear(x, p.weight + (p.B @ p.A * p.scale).to(x.dtype), p.bias)


def modules(kind: type) -> Any:
    return SimpleNamespace(patch_moe_module=type(kind.__name__, (RightModules,), {"kind": kind})().patch_moe_module)


VARIANTS: dict[str, Any] = {
    "folds the update into the weight": modules(Folds),
    "weighs between the projections": modules(WeighsBetween),
    "folds each row's expert": FoldsRows(),
    "right, as the twins' base": RIGHT,
    "right modules": RightModules(),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_no_clause_fails_a_right_variant(name: str) -> None:
    target, alarms = Target.of(VARIANTS[name], name), []
    for clause in load_all(["experts"]).values():
        if clause.group != "experts" or clause.level != MUST:
            continue
        for subject in target.subjects(clause):
            for dtype in [d for d in clause.dtypes if d in ("float32", "bfloat16")] or [(*clause.dtypes, ANY_DTYPE)[0]]:
                result = Examination(clause, subject, dtype, SOME).run()
                if result.status != "pass":
                    alarms.append(
                        f"{clause.id} {subject.name} {dtype} {result.status}: {result.case}\n{result.message}"
                    )
    assert not alarms, "\n\n".join(alarms)


@pytest.mark.filterwarnings("ignore")
def test_peft_fails_only_with_one_expert() -> None:
    pytest.importorskip("peft")
    target = Target.of(importlib.import_module("conformance.targets.peft_experts"), "peft_experts")
    clause = load_all(["experts"])["EXP-MOD-FWD"]
    alone = dataclasses.replace(
        clause, cases=clause.cases.narrowed(experts=(1,), routing=("uneven",), kind=("interleaved",))
    )
    (subject,) = target.subjects(alone)
    assert Examination(alone, subject, "float32", SOME).run().status == "fail"
    failed = set()
    for clause in load_all(["experts"]).values():
        if clause.group == "experts" and clause.level == MUST:
            for subject in target.subjects(clause):
                result = Examination(clause, subject, "float32", dataclasses.replace(SOME, volume=16)).run()
                failed |= {clause.id} if result.status != "pass" else set()
    assert failed <= {"EXP-MOD-FWD", "EXP-MOD-BWD", "EXP-MOD-DP", *target.deviations}
