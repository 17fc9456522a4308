"""Scripts of checks on several ranks: a function of the rank, run in processes, as short as others."""

from __future__ import annotations

import sys

import pytest

from conformance.reproducer.reduction import DEFECT, RIGHT, said
from conformance.reproducer.short_script import short_script
from conformance.run.profiles import PROFILES
from tests.support.twins import CLAUSES, REGISTRY, begun, own_failure, reset

LINES = 80  # at most


def test_a_script_of_ranks_shows_the_defect_and_none_on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = REGISTRY["DIS-NORM-RANGE__SquaresInFloat32"]
    monkeypatch.setitem(sys.modules, "twin", bad.target)
    result = own_failure(bad, PROFILES["quick"])
    assert result is not None
    with begun(bad) as target:
        clause = CLAUSES[bad.clause]
        subject = next(each for each in target.subjects(clause) if each.name == result.subject)
        reset(bad)
        text = short_script(clause, subject, "twin", result) or ""
    assert text.count("\n") <= LINES
    assert "def work(rank):" in text
    assert 'torch.distributed.init_process_group("gloo"' in text
    assert "conformance" not in text
    shown = said(text, bad.clause)
    assert shown.kind == DEFECT
    assert shown.sentence.startswith("DIS-NORM-RANGE: ")
    line = next(line for line in text.splitlines() if line.endswith("import clip_grad_norm_"))
    assert said(text.replace(line, "from reference import clip_grad_norm_"), bad.clause).kind == RIGHT
