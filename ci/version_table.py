"""Put what one environment of ci/versions showed into the table: python ci/version_table.py FOLDER TABLE.

The folder has report.json, plugin.xml and packages.json; a missing one is a step that failed.
"""

import datetime as dt
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

PACKAGES = ("triton", "numpy")
HEAD = """# Versions

What `optimized` showed under other versions of Python and PyTorch: written by `ci/versions`, on a CPU under Linux.

| Python | torch | triton | numpy | loraspec run optimized --profile quick | pytest --pyargs conformance | date |
|---|---|---|---|---|---|---|
"""


def main(folder: Path, table: Path) -> int:
    """Write the row of this folder's environment; return 1 unless both verdicts are a pass."""
    python, torch = folder.name.split("-")
    packages = {p["name"]: p["version"] for p in _read(folder / "packages.json") or ()}
    passed, verdict = _verdict(_read(folder / "report.json"))
    agreed, plugin = _plugin(folder / "plugin.xml")
    today = dt.date.today().isoformat()
    cells = (python, torch, *(packages.get(name, "–") for name in PACKAGES), verdict, plugin, today)
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    rows = {tuple(line.split("|")[1:3]): line for line in lines if re.match(r"\| 3\.", line)}
    rows[f" {python} ", f" {torch} "] = f"| {' | '.join(cells)} |"
    table.write_text(HEAD + "".join(f"{rows[key]}\n" for key in sorted(rows)), encoding="utf-8")
    sys.stdout.write(rows[f" {python} ", f" {torch} "] + "\n")
    return 0 if passed and agreed else 1


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _verdict(report: Any) -> tuple[bool, str]:
    if report is None:
        return False, "no report"
    statuses = [(clause["status"], clause["level"]) for clause in report["clauses"]]
    counts = [f"{sum(status == 'pass' for status, _ in statuses)} clauses pass"]
    if failed := sum(status in ("fail", "crashed") for status, _ in statuses):
        must = sum(status in ("fail", "crashed") and level == "MUST" for status, level in statuses)
        counts.append(f"{failed} fail ({must} MUST)")
    if absent := sum(status == "not_claimed" for status, _ in statuses):
        counts.append(f"{absent} not claimed")
    return report["verdict"] == "pass", f"{report['verdict'].upper()}: {', '.join(counts)}"


def _plugin(path: Path) -> tuple[bool, str]:
    if not path.exists():
        return False, "no result"
    suite = next(ET.parse(path).getroot().iter("testsuite"))
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return not failed and total > 0, f"{total - failed - skipped} passed, {failed} failed"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
