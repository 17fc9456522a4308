"""`loraspec bench`: the sizes it measures, the targets it ranks, and the report it prints and writes."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from conformance import cli
from conformance.bench import admission, cases, plot, session, table
from conformance.bench.admission import Admission
from conformance.bench.cases import Size
from conformance.bench.measured_case import (
    FROZEN,
    MEASURED,
    UNRANKED,
    UNSUPPORTED,
    Costs,
    LeastWork,
    MeasuredCase,
    Row,
    Spread,
)
from conformance.bench.report import BenchReport, exit_code
from conformance.bench.work import Work
from tests.support.commands import TARGETS
from tests.support.timed_targets import K, M, N, R


@pytest.mark.parametrize("text", ["64x256x128", "64,256,128"])
def test_a_shape_may_be_written_with_x_or_commas(text: str) -> None:
    assert cases.shape(text) == (64, 256, 128)


@pytest.mark.parametrize("text", ["64x256", "64x256x128x8", "64x256x0", "64x256xN", "-1x2x3", ""])
def test_an_invalid_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected MxKxN or M,K,N, for example 64x256x256"):
        cases.shape(text)


def test_every_shape_is_combined_with_every_rank_and_both_have_defaults() -> None:
    assert cases.sizes([(1, 2, 3), (4, 5, 6)], [7, 8], "cpu") == (
        Size(1, 2, 3, 7), Size(1, 2, 3, 8), Size(4, 5, 6, 7), Size(4, 5, 6, 8),
    )  # fmt: skip
    assert cases.sizes([(1, 2, 3)], [], "cpu") == (Size(1, 2, 3, 16),)
    assert list(map(str, cases.sizes([], [], "cpu"))) == ["64x256x256 r8", "512x1024x1024 r16"]
    assert list(map(str, cases.sizes([], [4], "cpu"))) == ["64x256x256 r4", "512x1024x1024 r4"]
    gpu = cases.sizes([], [], "cuda:0")
    assert ({s.m for s in gpu}, {s.r for s in gpu}) == ({256, 1024, 4096, 16384}, {8, 16, 64, 128})
    assert {s.k for s in gpu} == {s.n for s in gpu} == {1024, 4096, 14336}


class Ranked(NamedTuple):
    """A benchmark that was run: its exit code, its report, bench.json, what was printed, and the folder."""

    code: int
    report: BenchReport
    found: dict[str, Any]
    text: str
    folder: Path


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Ranked:
    """A right and a wrong target, judged by one clause."""
    folder = tmp_path_factory.mktemp("bench")
    command = ["bench", "right", "unscaled", "--shapes", "6x40x24", "8,16,16", "--rank", "3", "--rounds", "2"]
    reports: list[BenchReport] = []
    run = session.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(TARGETS), *sys.path])
        patch.setenv("PYTHONPATH", str(TARGETS))
        patch.setattr(session, "run", lambda *asked: reports.append(run(*asked)) or reports[0])
        patch.setattr(session, "examined", functools.partial(admission.examined, clauses=("LIN-FWD",)))
        patch.setattr("conformance.bench.ceilings.PRODUCT", {"cpu": 64})
        patch.setattr("conformance.bench.ceilings.COPIED", {"cpu": 2**16})
        patch.setattr(session.ceilings, "measured", functools.partial(session.ceilings.measured, duration=0.01))
        with (folder / "printed").open("w+", encoding="utf-8") as out:
            patch.setattr(sys, "stdout", out)
            code = cli.main([*command, "--seconds", "0.0001", "--plot", "--report-dir", str(folder)])
            patch.undo()
    text = (folder / "printed").read_text(encoding="utf-8")
    return Ranked(code, *reports, json.loads((folder / "bench.json").read_text(encoding="utf-8")), text, folder)


def test_a_failing_target_is_not_ranked(ranked: Ranked) -> None:
    code, _, found, text, _ = ranked
    assert code == 1
    assert [(t["spec"], t["verdict"], list(t["failing"])) for t in found["targets"]] == [
        ("right", "pass", []),
        ("unscaled", "fail", ["LIN-FWD"]),
    ]
    assert [[row["target"] for row in case["layers"]] for case in found["cases"]] == [["right"], ["right"]]
    assert text.count("fails, not ranked") == 2 + 1
    said = "unscaled fails, not ranked: LIN-FWD; see `loraspec run unscaled`; --unranked times it all the same."
    assert said in " ".join(text.split())
    assert "right 1.0: 1 clauses of group linear pass." in text


def test_a_failing_target_that_was_timed_is_still_said_to_fail(ranked: Ranked) -> None:
    cases = []
    for case in ranked.report.cases:
        timed = replace(case.layers[0], label="unscaled", target="unscaled", status=UNRANKED)
        cases.append(replace(case, layers=(*case.layers, timed)))
    found = replace(ranked.report, cases=tuple(cases))
    assert "unscaled fails, not ranked: LIN-FWD; see `loraspec run unscaled`." in table.sentences(found)
    assert table.markdown(found).count("| – | unscaled, fails 1 clause | ") == len(found.cases)
    assert "fails, not ranked |" not in table.markdown(found)


@pytest.mark.parametrize("option", [[], ["--unranked"]])
def test_unranked_is_passed_to_the_session(option: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[session.Wanted] = []

    def run(wanted: session.Wanted, _say: Any) -> None:
        seen.append(wanted)
        raise session.UsageError("seen")

    monkeypatch.setattr(session, "run", run)
    assert cli.main(["bench", "right", *option, "--report-dir", str(tmp_path)]) == 2
    assert [wanted.unranked for wanted in seen] == [bool(option)]


def test_the_report_says_what_was_measured_on_what(ranked: Ranked) -> None:
    _, _, found, text, folder = ranked
    assert [(c["M"], c["K"], c["N"], c["r"], c["dtype"]) for c in found["cases"]] == [
        (6, 40, 24, 3, "float32"),
        (8, 16, 16, 3, "float32"),
    ]
    assert found["ceilings"]["flops"]["float32"] > 0
    assert found["ceilings"]["bytes"] > 0
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    for case in found["cases"]:
        for row in (case["frozen"], *case["layers"]):
            assert len(row["rounds"]) == found["pace"]["rounds"] == 2
    (row,) = found["cases"][0]["layers"]
    assert (row["saved_bytes"], row["flops_counted"]) == (4 * M * R, 4 * M * K * N + 6 * M * R * (K + N))
    assert f"6x40x24 r3 float32 on {found['device_name']}" in text
    assert f"{row['over'][FROZEN]['median']:.2f}" in text
    assert "(a product of 64x64x64)" in text
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


def costs_of(**over: float) -> Costs:
    """The costs of a layer that took so long over others."""
    return Costs(
        seconds=1e-3,
        rounds=(1e-3, 1e-3),
        over={name: Spread(ratio, (ratio - 0.1, ratio + 0.1)) for name, ratio in over.items()},
        flops_per_second=2.5e9,
        of_flops_ceiling=0.5,
        bytes_per_second=1e6,
        of_bytes_ceiling=0.01,
        over_roofline=2.0,
        flops_counted=1,
        saved_bytes=1234,
        peak_bytes=999,
    )


def case_of(*ratios: float) -> MeasuredCase:
    """A case in which layers a, b, … took so long over the frozen layer."""
    labels = "abcdefgh"[: len(ratios)]
    rows = []
    for name, mine in zip(labels, ratios, strict=True):
        others = {other: mine / ratio for other, ratio in zip(labels, ratios, strict=True) if other != name}
        rows.append(Row(name, name, MEASURED, costs_of(**others, **{FROZEN: mine})))
    return MeasuredCase(
        case="6x40x24 r3 float32",
        M=M,
        K=K,
        N=N,
        r=R,
        dtype="float32",
        dropout=0.0,
        dropout_position=None,
        memory_efficient=False,
        least_work=LeastWork((Work(1, 1), Work(1, 1)), (Work(1, 1), Work(1, 1))),
        frozen=Row(FROZEN, None, MEASURED, costs_of()),
        layers=tuple(rows),
    )


def test_the_table_has_ranks_and_ratios_to_every_other_layer() -> None:
    case = case_of(1.2, 1.8)
    case = replace(case, layers=(*case.layers, Row("c", "c", "raises MemoryError: no")))
    first, one, two, raising, failing = table.rows(case, {"wrong": "1 clause"})
    assert table.headings(2)[:7] == ["", "layer", "time", "÷ frozen", "quartiles", "÷ 1", "÷ 2"]
    assert first[:4] == ["", FROZEN, "1 ms", "1"]
    assert one[:7] == ["1", "a", "1 ms", "1.20", "1.10–1.30", "", "0.67"]
    assert two[:7] == ["2", "b", "1 ms", "1.80", "1.70–1.90", "1.50", ""]
    assert two[7:] == ["2.5 G 50%", "1 M 1%", "2.00", "1.23 kB", "999 B"]
    assert raising == ["–", "c", "raises MemoryError: no"]
    assert failing == ["–", "wrong", "fails, not ranked"]


def test_a_ceiling_that_was_exceeded_is_said_to_be_none(ranked: Ranked) -> None:
    for share, said in ((0.9, 0), (1.1, 1)):
        frozen = Row(FROZEN, None, MEASURED, replace(costs_of(), of_flops_ceiling=share))
        found = replace(ranked.report, cases=(replace(case_of(1.2), frozen=frozen),))
        assert sum("above 100%" in sentence for sentence in table.sentences(found)) == said


@pytest.mark.parametrize(
    ("options", "clause", "ranked"),
    [
        ({}, "LAY-FWD-LEAD", False),
        ({}, "LIN-BWD-DX", False),
        ({}, "LAY-LAYOUT-SHARED", False),
        ({}, "LAY-MEM-REFILL", False),
        ({}, "LAY-COPY", True),
        ({}, "LAY-FWD-MIXED", True),
        ({}, "LIN-BWD-DOUBLE", True),
        ({}, "LAY-DROP-MASK", True),
        ({"dropout": True}, "LAY-DROP-MASK", False),
        ({}, "LAY-MEMORY-ANY", True),
        ({"memory_efficient": True}, "LAY-MEMORY-ANY", False),
    ],
)
def test_a_failing_clause_costs_the_place_where_it_concerns_what_is_timed(
    options: dict[str, bool], clause: str, ranked: bool
) -> None:
    timed = admission.timed_clauses(**{"dropout": False, "memory_efficient": False, **options})
    found = Admission("t", "t", None, "layer", 1, {clause: "wrong"}, timed)
    assert (found.ranked, found.verdict) == (ranked, "fail")


def test_a_target_that_fails_other_clauses_has_its_place_and_a_mark(ranked: Ranked) -> None:
    marked = Admission("right", "right", "1.0", "linear", 1, {"LIN-CKPT": None, "LIN-AMP": None})
    found = replace(ranked.report, targets=(marked,))
    _, first, *_ = table.rows(found.cases[0], table.failed(found))
    assert first[:2] == ["1", "right lora_linear, not conforming: fails 2 clauses"]
    said = "right 1.0 is not conforming: it fails LIN-CKPT, LIN-AMP, none on what is timed; see `loraspec run right`."
    assert said in table.sentences(found)
    assert found.to_json()["targets"][0].items() >= {"verdict": "fail", "ranked": True}.items()


def test_exit_code_1_needs_a_failing_target_or_a_layer_that_raises() -> None:
    passing, failing = (Admission("t", "t", None, "layer", 1, failing) for failing in ({}, {"LAY-FWD": None}))
    marked = Admission("t", "t", None, "layer", 1, {"LAY-STATE": None})
    case = case_of(1.2)
    silent = replace(case, layers=(*case.layers, Row("b", "b", UNSUPPORTED)))
    raising = replace(case, layers=(Row("c", "c", "raises MemoryError: no"),))
    for targets, cases_of_it, code in (
        ((passing,), (silent,), 0),
        ((passing, failing), (silent,), 1),
        ((passing, marked), (silent,), 0),
        ((passing,), (silent, raising), 1),
    ):
        assert exit_code(targets, cases_of_it) == code


def test_missing_matplotlib_is_reported_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    monkeypatch.setattr(session, "run", lambda *_: pytest.fail("measured"))
    assert cli.main(["bench", "right", "--plot", "--report-dir", str(tmp_path)]) == 2
    assert "--plot needs matplotlib: pip install 'loraspec[demo]'" in capsys.readouterr().err


def test_the_plot_has_every_layer_in_every_panel() -> None:
    found = [case_of(1.2, 1.8), case_of(1.1, 1.3, 1.4)]
    assert [costs.over[FROZEN].median for _, costs in plot.points(found, "c")] == [1.4]
    assert len(plot.points(found, "a")) == 2
    styles = plot.styles(found)
    assert list(styles) == ["a", "b", "c"]
    assert len({style["color"] for style in styles.values()}) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shapes", "64x256"], "shape '64x256': expected MxKxN or M,K,N"),
        (
            ["--shapes", "64x256x256", "right"],
            "for example 64x256x256; targets come before --shapes",
        ),
        (["--rank", "0"], "'0' is no rank or number of experts"),
        (["--experts", "none"], "'none' is no rank or number of experts"),
        (["--experts", "4", "--dropout", "0.1"], "--experts times layers without dropout"),
        (["--rounds", "1"], "'1' is no number of rounds: expected 2, 3"),
        (["--dropout", "2"], "'2' is no dropout probability: expected 0 to 1"),
        (["--seconds", "soon"], "'soon' is no number of seconds"),
        (["--dtype", "fp32"], "unknown dtype 'fp32': expected one of float64, float32"),
        (["--device", "mps"], "unknown device 'mps'"),
        (["--report-dir", __file__], "cannot write reports to"),
    ],
)
def test_a_usage_error_prints_a_message_and_exits_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["bench", "right", *arguments])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert says in capsys.readouterr().err
