"""Store a run's report in the repository, without its empty fields and local paths.

python ci/keep_report.py loraspec-report/report.json conformance/reports/peft/0.21.2.json
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# the optional fields of the schema, which are left out if they are empty
SILENT = {"case": None, "found": None, "message": None, "inconclusive": 0, "launches": 0}
OF_THE_MACHINE = (re.compile(r"(?:/[^\s/'\"]+)*/(?:site|dist)-packages/"), re.compile(re.escape(f"{ROOT}/")))


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """The report without its empty fields and local paths, valid by the same schema."""
    claimed = {name for name, group in report["groups"].items() if group["claimed"]}
    report["clauses"] = [clause for clause in report["clauses"] if clause["group"] in claimed]
    for clause in report["clauses"]:
        clause.pop("launches")
        clause["results"] = [_spoken(result, clause) for result in clause["results"]]
    text = json.dumps(report, ensure_ascii=False)
    for pattern in OF_THE_MACHINE:
        text = pattern.sub("", text)
    return json.loads(text)  # type: ignore[no-any-return]


def _spoken(result: dict[str, Any], clause: dict[str, Any]) -> dict[str, Any]:
    silent = {key for key, value in SILENT.items() if result.get(key) in (value, clause.get(key))}
    return {key: value for key, value in result.items() if key not in silent | {"seconds", "found"}}


def _lines(report: dict[str, Any]) -> str:
    """The report as JSON with one line for each clause, so that two reports can be compared."""
    head = {key: value for key, value in report.items() if key != "clauses"}
    clauses = ",\n".join(json.dumps(clause, ensure_ascii=False) for clause in report["clauses"])
    return f'{json.dumps(head, ensure_ascii=False)[:-1]},\n"clauses": [\n{clauses}\n]}}\n'


if __name__ == "__main__":
    source, goal = map(Path, sys.argv[1:])
    goal.parent.mkdir(parents=True, exist_ok=True)
    goal.write_text(_lines(kept(json.loads(source.read_text()))))
