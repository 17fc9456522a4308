"""Store a run's report in the repository, without its empty fields and local paths.

python ci/keep_report.py loraspec-report/report.json conformance/reports/peft/0.21.2.json
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from conformance.report.report import Report, ReportedClause, ReportedResult  # noqa: E402

# what the schema lets a report leave out, where it says nothing
SILENT = {"case": None, "message": None, "inconclusive": 0, "launches": 0}
OF_THE_MACHINE = (re.compile(r"(?:/[^\s/'\"]+)*/(?:site|dist)-packages/"), re.compile(re.escape(f"{ROOT}/")))


def kept(report: Report) -> dict[str, Any]:
    """The same report as a JSON object, valid by the same schema, with less in it."""
    clauses = [_clause(clause) for clause in report.clauses if report.groups[clause.group].claimed]
    text = json.dumps(report.to_json() | {"clauses": clauses}, ensure_ascii=False)
    for pattern in OF_THE_MACHINE:
        text = pattern.sub("", text)
    return json.loads(text)  # type: ignore[no-any-return]


def _clause(clause: ReportedClause) -> dict[str, Any]:
    found = clause.to_json() | {"results": [_result(result, clause) for result in clause.results]}
    del found["launches"]
    return found


def _result(result: ReportedResult, clause: ReportedClause) -> dict[str, Any]:
    found = result.to_json()
    repeated = {key: getattr(clause, key) for key in ("case", "message", "inconclusive")}
    silent = {key for key, value in SILENT.items() if found[key] in (value, repeated.get(key, value))}
    return {key: value for key, value in found.items() if key not in silent | {"seconds", "found"}}


def _lines(report: dict[str, Any]) -> str:
    """The report as JSON with one line for each clause, so that two reports can be compared."""
    head = {key: value for key, value in report.items() if key != "clauses"}
    clauses = ",\n".join(json.dumps(clause, ensure_ascii=False) for clause in report["clauses"])
    return f'{json.dumps(head, ensure_ascii=False)[:-1]},\n"clauses": [\n{clauses}\n]}}\n'


def store(source: Path, goal: Path) -> None:
    """Write the report at `source` to `goal`, in short."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    goal.write_text(_lines(kept(Report.from_json(json.loads(source.read_text())))))


if __name__ == "__main__":
    store(*map(Path, sys.argv[1:]))
