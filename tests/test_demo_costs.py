"""`loraspec demo encryption-costs`: the table of what each backend costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from conformance import cli
from conformance.demo import encryption_costs
from reference import SealBackend


def test_the_table_has_a_row_for_each_backend_and_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for library in ("seal", "concrete_ml_extensions"):
        pytest.importorskip(library)
    shapes = ["--shapes", "40x6x5", "2x6x5"]
    assert cli.main(["demo", "encryption-costs", "--out", str(tmp_path), "--backends", "seal,toy", *shapes]) == 0
    table = (tmp_path / "encryption-costs.md").read_text()
    assert table in capsys.readouterr().out
    found = json.loads((tmp_path / "encryption-costs.json").read_text())["costs"]
    assert [(each["backend"], each["M"], each["secure"]) for each in found] == [
        ("seal", 40, True),
        ("seal", 2, True),
        ("toy", 1, False),  # one row stands for any number
    ]
    assert all(each["wrong"] == 0 and each["up"] > 0 and each["row"] <= each["server"] for each in found)
    assert found[2]["key"] > 1_000_000 > found[0]["key"] > 0
    assert f"| seal | 40·6·5 | {encryption_costs.rows([encryption_costs.Cost(**found[0])])[0][2]} |" in table


def test_wrong_results_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("seal")
    decrypt = SealBackend.decrypt

    def off_by_one(*given: Any) -> Tensor:
        y = decrypt(*given)
        return y + (y == y.max())

    monkeypatch.setattr(SealBackend, "decrypt", off_by_one)
    (cost,) = encryption_costs.costs(("seal",), ((3, 40, 4),), lambda _: None)
    assert cost.wrong == 1
    assert encryption_costs.rows([cost])[0][-2] == str(cost.wrong)


def test_an_unknown_backend_and_a_wrong_shape_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "encryption-costs", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--backends", "seal,rot13"]) == 2
    assert "unknown backend 'rot13': expected one of seal, exact, fast, toy" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--shapes", "2x3"])
    assert "2x3" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
