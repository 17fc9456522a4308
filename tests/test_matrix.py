"""The matrix: the content of a cell, the JSON, Markdown, terminal and HTML forms, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from conformance.report import features as claims
from conformance.report import report
from conformance.report.matrix import markdown, matrix, page, table
from conformance.report.matrix.assemble import assemble, exit_code
from conformance.report.matrix.columns import Column
from conformance.report.matrix.matrix import Cell, Matrix
from conformance.report.report import Report, SuiteFailure
from conformance.specification.clause import load_all
from conformance.target.layer_form import LayerForm
from tests.support.matrices import CLAUSES, HOSTILE, a_clause, a_column, a_report, a_result, report_of

SCHEMA = json.loads(matrix.SCHEMA.read_text())
FAILS = {"LIN_FWD": (("fail", 2.0), ("pass", 0.5)), "LIN_DET": (("pass", 0.1), ("fail", 3.0))}


def made(*made_of: Column) -> Matrix:
    """A matrix that follows its schema."""
    found = assemble(made_of)
    jsonschema.validate(found.to_json(), SCHEMA)
    return found


def three() -> tuple[Column, ...]:
    """Columns of a target that passes, one that fails and claims less, and one that does not import."""
    lesser = a_column("lesser", claims=("LIN-FWD", "LIN-BWD-DA", "LIN-DET"), **FAILS)
    return a_column("right"), lesser, Column("absent", 2, problem="target 'absent' does not import")


def cells(found: Matrix, clause: str) -> list[Cell]:
    """The cells of a clause; an absent one is a None all the same."""
    return next(list(row.cells) for row in found.rows if row.id == clause)  # type: ignore[arg-type]


def test_a_cell_has_status_ratio_case_message_and_rerun_command() -> None:
    found = made(*three())
    right, lesser, absent = cells(found, "LIN-FWD")
    assert (right.status, right.worst_ratio, right.gates, right.rerun) == ("pass", 0.5, False, None)
    assert absent is None
    assert (lesser.status, lesser.worst_ratio, lesser.gates) == ("fail", 2.0, True)
    assert (lesser.case, lesser.found, lesser.message) == ("m=3 k=4", "m=99 k=4", "float32: fail")
    assert lesser.rerun == "loraspec rerun 'LIN-FWD lesser f m=3 k=4'"
    assert lesser.script == "lesser/repro_LIN-FWD.py"
    assert {dtype: one.status for dtype, one in lesser.dtypes.items()} == {"float32": "fail", "bfloat16": "pass"}
    assert [(trial.dtype, trial.status, trial.message) for trial in lesser.trials] == [("float32", "fail", None)]
    assert not cells(found, "LIN-DET")[1].gates
    assert cells(found, "LAY-FWD")[1].message == "the target has no LinearLoRA"


def test_the_exit_code_is_the_worst_of_all_targets() -> None:
    right, lesser, absent = three()
    assert exit_code([right]) == 0
    assert exit_code([lesser, right]) == 1
    assert exit_code([absent, right, lesser]) == 2
    broken = replace(a_report("broken"), errors=(SuiteFailure("LIN-FWD", "ZeroDivisionError"),))
    column = Column.of(broken, {})
    assert exit_code([absent, column]) == 3
    assert made(column).targets[0].problem == "the suite failed at LIN-FWD:\nZeroDivisionError"


def test_reports_with_other_clauses_keep_their_order_in_one_matrix() -> None:
    old, new = a_report("old"), a_report("new")
    old = replace(old, clauses=(old.clauses[0], *old.clauses[2:]))
    new = replace(new, clauses=new.clauses[:3])
    found = made(Column.of(old, {}), Column.of(new, {}))
    assert [row.id for row in found.rows] == list(CLAUSES)
    assert cells(found, "LIN-BWD-DA")[0] is None
    assert cells(found, "LAY-FWD")[1] is None


def test_markdown_shows_groups_and_failures_and_folds_the_rest() -> None:
    text = markdown.document(made(*three()))
    lines = text.splitlines()
    assert "| clause | right layers 1.2 | lesser layers 1.2 | absent |" in lines
    assert "| linear | ✓ 3 of 3 | ✗ 1 of 3 | · |" in lines
    assert "| LIN-FWD | ✓ 0.50 | ✗ fail 2.00 | · |" in lines
    assert "| LIN-DET | ✓ 0.50 | ✗ fail 3.00 (SHOULD) | · |" in lines
    folded = text[text.index("<details>") :].splitlines()
    assert "| LAY-FWD | ✓ 0.50 | – | · |" in folded
    assert "| LIN-FWD | ✓ 0.50 | ✗ fail 2.00 | · |" not in folded
    assert "**absent**: target 'absent' does not import" in lines
    tables = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables} == {5, 9}


def test_markdown_shows_names_as_they_are() -> None:
    hostile = Column.of(replace(a_report(), target_name="a|b <b> `c`\n*d*"), {})
    assert r"| a\|b \<b\> \`c\` \*d\* 1.2 |" in markdown.document(made(hostile))


def test_the_terminal_shows_groups_and_failures(capsys: pytest.CaptureFixture[str]) -> None:
    found = made(*three())
    table.show(found, Path("somewhere"))
    out = capsys.readouterr().out
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line.strip()}
    assert rows["linear"] == "✓ 3 of 3 ✗ 1 of 3 ·"
    assert rows["LIN-FWD"] == "✓ 0.50 ✗ fail 2.00 ·"
    assert "LAY-FWD" not in rows
    assert "NOT JUDGED absent\n  target 'absent' does not import" in out
    assert "PASS right layers 1.2: 5 pass; 60 cases, worst passing error ÷ budget 0.50; on cpu (a processor" in out
    table.show(found, Path("somewhere"), whole=True)
    assert "  LAY-FWD" in capsys.readouterr().out
    table.show(found, Path("somewhere"), quiet=True)
    assert "LIN-FWD" not in capsys.readouterr().out


class Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record one element."""
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element with this tag."""
        return [attributes for name, attributes in self.found if name == tag]


def hostile() -> Column:
    """A report every text of which would run a script, were it not escaped."""
    found = a_report("hostile", **FAILS).to_json()
    for name in ("target", "target_name", "target_version", "device_name", "profile", "date"):
        found[name] = HOSTILE
    found["versions"] = dict.fromkeys(found["versions"], HOSTILE)
    for clause in found["clauses"]:
        clause["sentence"] = clause["message"] = clause["reason"] = clause["found"] = HOSTILE
        if clause["case"]:
            clause["case"] = HOSTILE
        for result in clause["results"]:
            result["subject"] = result["message"] = result["lane"] = HOSTILE
    found["errors"] = [{"where": HOSTILE, "traceback": HOSTILE}]
    return Column.of(Report.from_json(found), {"LIN-FWD": HOSTILE}, HOSTILE)


def test_a_page_fetches_nothing_and_runs_no_script_from_a_report() -> None:
    elements = Elements(page.document([hostile(), *three()]))
    assert len(elements.all("script")) == 1
    assert elements.all("img") == []
    assert [link["href"] for link in elements.all("link")] == ["data:,"]
    assert all((link["href"] or "").startswith("#") for link in elements.all("a"))
    assert not any(name.startswith("on") or name in ("src", "style") for _, a in elements.found for name in a)
    policy = next(a["content"] for a in elements.all("meta") if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_a_page_is_a_table_with_headers_and_its_links_have_targets() -> None:
    elements = Elements(page.document(three()))
    scopes = [head["scope"] for head in elements.all("th")]
    assert {"col", "row", "rowgroup"} == set(scopes)
    assert scopes.count("rowgroup") == 3
    entries = {entry["id"] for entry in elements.all("details")}
    assert {f"#{entry}" for entry in entries} <= {link["href"] for link in elements.all("a")}
    assert entries == {"f0-1", "f2-1"}


def test_a_page_includes_reproducers_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(page.document(three()).encode())
    monkeypatch.setattr(page, "LIMIT", (whole + page.ENTRY) // 3)
    text = page.document(three())
    assert "print(&#34;LIN-FWD&#34;)" in text
    assert "print(&#34;LIN-DET&#34;)" not in text
    assert "<code>lesser/repro_LIN-DET.py</code>" in text


def everything_fails() -> Column:
    """A target that fails every clause of the suite for one reason, and has a long script for each."""
    message = (
        "worst    dX[0, 0]: got 1, want -1     error ÷ budget 5e9\npattern  60 of 60 elements wrong; all; as if so"
    )
    clauses = [
        a_clause(
            clause.id,
            clause.group,
            *(a_result(dtype=dtype, status="fail", message=message) for dtype in clause.dtypes or ("any",)),
            sentence=clause.sentence,
            status="fail",
            message=message,
            case="m=1 k=1 n=1 r=1",
        )
        for clause in load_all().values()
    ]
    versions = {"python": "3.11", "torch": "2", "loraspec": "0", "triton": None}
    return Column.of(report_of(*clauses, versions=versions), {clause.id: "x = 1\n" * 3000 for clause in clauses})


def test_a_page_of_a_full_run_stays_small_whatever_fails() -> None:
    text = page.document([everything_fails()])
    assert len(text.encode()) < 400_000
    assert text.count("x = 1") % 3000 == 0
    assert "more in report.json" in text


def test_failures_come_first_by_cause_with_what_follows_folded() -> None:
    text = page.document([everything_fails()])
    assert text.index("Failures by cause") < text.index('<table class="matrix">')
    assert text.count('<article class="cause"') <= 3
    cause = text[text.index('<article class="cause"') : text.index("</article>")]
    assert "What was seen" in cause
    assert "got 1, want -1" in cause
    assert "clauses follow: " in cause


def featured() -> Column:
    """A column whose layers lack rsLoRA, scale DoRA's bias and have a form that is hostile."""
    clauses = [
        a_clause("LAY-FWD", "layer"),
        a_clause("DORA-BIAS", "dora", feature="dora_bias"),
        a_clause("LAY-RSLORA", "layer", status="not_claimed", feature="rslora"),
    ]
    found = claims.claims(clauses, ("layer", "dora"))
    form = LayerForm("LinearLoRA", f"LinearLoRA has no lora_A {HOSTILE}", "lora_A = property(lambda self: self.down)")
    about = {"core": found.core, "features": found.features, "conventions": {"dora_bias": "scaled"}, "forms": (form,)}
    return Column.of(report_of(*clauses, versions={"python": "3.11", "loraspec": "0", "torch": "2"}, **about), {})


CLAIMS = "core 1 of 1; features: rsLoRA absent, DoRA bias scaled ✓"


def test_features_and_forms_are_on_every_page_of_a_matrix(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = made(featured(), *three())
    assert found.targets[0].claims == CLAIMS
    text = page.document([featured()])
    assert f'<p class="claims">{CLAIMS}</p>' in text
    assert "LinearLoRA has no lora_A &lt;/pre&gt;" in text
    assert "write in the target:  lora_A = property(lambda self: self.down)</li>" in text
    assert HOSTILE not in text
    assert f"<b>t</b>: {CLAIMS}" in page.document([featured(), *three()])
    assert f"**t**: {CLAIMS}; LinearLoRA has no lora\\_A" in markdown.document(found)
    table.show(found, tmp_path, quiet=True)
    assert f"  {CLAIMS}\n  LinearLoRA has no lora_A" in capsys.readouterr().out


def test_a_page_needs_only_the_properties_that_the_report_schema_requires() -> None:
    asked = json.loads(report.SCHEMA.read_text())

    def least(found: Any, schema: dict[str, Any]) -> Any:
        """Keep only the properties that the schema requires."""
        schema = asked["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if isinstance(found, list):
            return [least(item, schema["items"]) for item in found]
        if not isinstance(found, dict) or "required" not in schema:
            return found
        properties = schema.get("properties", {})
        return {name: least(found[name], properties.get(name, {})) for name in schema["required"]}

    bare = least(a_report(**FAILS).to_json(), asked)
    jsonschema.validate(bare, asked)
    assert "sentence" not in bare["clauses"][0]
    assert "triton" not in bare["versions"]
    column = Column.of(Report.from_json(bare), {})
    assert "loraspec rerun" in page.document([column])
    assert "| LIN-FWD | ✗ fail 2.00 |" in markdown.document(made(column))


def test_many_targets_are_printed_in_several_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = [a_column(f"target{number}", **FAILS) for number in range(9)]
    table.show(made(*columns), tmp_path)
    tables = capsys.readouterr().out.partition("\nFAIL")[0].split("  clause ")
    assert len(tables) == 3  # the first is the titles of the one after it
    found = [f"target{number}" for number in range(9) if f"target{number}" in tables[0]]
    assert found == [f"target{number}" for number in range(len(found))]
    assert 4 <= len(found) < 9
