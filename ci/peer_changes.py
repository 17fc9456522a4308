"""Say what fresh reports of the peers tell that the committed ones do not.

    python ci/peer_changes.py FRESH KEPT [--keep]

FRESH has a folder with report.json for each target; KEPT has TARGET/VERSION.json. With --keep, each fresh report
replaces those of its target, and MATRIX.md is made anew.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from keep_report import store


def main(fresh: Path, kept: Path, *, replace: bool) -> int:
    """Print the changes of each target; return 1 if a MUST clause fails that did not fail before."""
    worse = False
    for path in sorted(fresh.glob("*/report.json")):
        new, old = _read(path), _latest(kept / path.parent.name)
        lines = _changes(old, new)
        worse = worse or any(line.startswith("fails") for line in lines)
        head = f"{path.parent.name} {new['target_version']}, {new['profile']}: {new['verdict']}"
        sys.stdout.write("\n  ".join([head, *(lines or ["as before"])]) + "\n")
        if replace:
            shutil.rmtree(kept / path.parent.name, ignore_errors=True)
            store(path, kept / path.parent.name / f"{new['target_version']}.json")
    if replace:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "conformance", "matrix", str(kept), "--report-dir", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            shutil.copy(Path(folder, "matrix.md"), kept / "MATRIX.md")
    return int(worse)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _latest(folder: Path) -> dict[str, Any] | None:
    found = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    return _read(found[-1]) if found else None


def _changes(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """A line for each clause whose status changed, and one for those that are new or gone."""
    if old is None:
        return ["no report of it is committed"]
    same = old["target_version"] == new["target_version"]
    lines = [] if same else [f"version {old['target_version']} → {new['target_version']}"]
    before, now = ({c["id"]: c["status"] for c in report["clauses"]} for report in (old, new))
    broken = {c["id"] for c in new["clauses"] if c["level"] == "MUST" and c["status"] in ("fail", "crashed")}
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            lines.append(f"{'fails' if name in broken else 'now'} {name}: {before[name]} → {now[name]}")
    added = {name: now[name] for name in sorted(now.keys() - before.keys()) if now[name] != "not_claimed"}
    lines += [f"fails {name}: new clause" for name in added if name in broken]
    if added:
        lines.append(
            f"clauses that are new: {len(added)}, of which {sum(status == 'pass' for status in added.values())} pass"
        )
    if gone := sorted(before.keys() - now.keys()):
        lines.append(f"clauses that are gone: {', '.join(gone)}")
    return lines


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), replace="--keep" in sys.argv[3:]))
