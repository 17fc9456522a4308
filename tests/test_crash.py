"""A target that exits, segfaults or hangs: the clause is `crashed` and says where; the other clauses are judged."""

from __future__ import annotations

from pathlib import Path

from tests.support.commands import run_target, without_times

LIMIT = 5  # seconds; a trial that ends takes 0.1 s, and up to ten times as long on a busy machine
SEEN = {
    "LIN-DROP-EVAL": "ended the process without an error: an exit call, a kill signal, or memory ran out",
    "LIN-DROP-BWD": "killed the process: Segmentation fault\nat ",
    "LIN-DROP-ALL": f"did not finish within {LIMIT} s\nat ",
}
OTHERS = {"LIN-MEM-INPUTS": "pass", "LIN-FWD": "fail", "LIN-BWD-DA": "fail"}


def test_a_crash_costs_one_clause_and_workers_change_nothing(tmp_path: Path) -> None:
    clauses = ",".join((*SEEN, *OTHERS))
    options = ("--clause", clauses, "--dtype", "float32", "--timeout", str(LIMIT))
    ended, report = run_target("crashing", tmp_path / "0", *options, "-n", "0")
    found = {clause["id"]: clause for clause in report["clauses"]}
    assert (ended.returncode, report["verdict"]) == (1, "fail")
    assert {name: found[name]["status"] for name in OTHERS} == OTHERS
    for name, seen in SEEN.items():
        assert found[name]["status"] == "crashed"
        assert found[name]["message"].startswith(seen)
        assert "dropout=" in found[name]["case"]
        assert name in ended.stdout
    assert "CRASHED LIN-DROP" in ended.stdout
    message = found["LIN-DROP-ALL"]["message"]
    assert "in stall\n" in message
    assert "crashing.py:13 in lora_linear" in message

    with_workers, other = run_target("crashing", tmp_path / "2", *options, "-n", "2")
    assert with_workers.returncode == 1
    assert without_times(other) == without_times(report)
