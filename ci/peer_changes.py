"""Say what fresh reports of the peers tell that the committed ones do not.

    python ci/peer_changes.py FRESH KEPT [--keep]

FRESH has a folder with report.json for each target; KEPT has TARGET/VERSION.json, and stands beside the findings. With
--keep, each fresh report replaces those of its target, and MATRIX.md is made anew.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ci.keep_report import store  # noqa: E402

BAD = ("fail", "crashed", "inconclusive")


@dataclass(frozen=True)
class Page:
    """A page of conformance/findings: its name, the targets that it is about, and the clauses that they fail."""

    name: str
    targets: frozenset[str]
    clauses: frozenset[str]


def main(fresh: Path, kept: Path, *, replace: bool) -> int:
    """Print the changes of each target; return 1 if a MUST clause fails that did not before, or has no page."""
    paths = {path.parent.name: path for path in sorted(fresh.glob("*/report.json"))}
    if not paths:
        sys.stderr.write(f"{fresh} has no TARGET/report.json: run `ci/peers DIRECTORY --run` first, or set REPORTS\n")
        return 2
    pages = _pages(kept.parent / "findings")
    reports = {folder.name: _latest(folder) for folder in sorted(kept.iterdir()) if folder.is_dir()}
    left = sorted(reports.keys() - paths.keys())
    worse = False
    for name, path in paths.items():
        old, new = reports.get(name), _read(path)
        lines = _changes(old, new) + _without_page(new, pages)
        worse = worse or any(line.startswith(("fails", "no page")) for line in lines)
        head = f"{name} {new['target_version']}, {new['profile']}: {new['verdict']}"
        sys.stdout.write("\n  ".join([head, *(lines or ["as before"])]) + "\n")
        reports[name] = new
        if replace:
            shutil.rmtree(kept / name, ignore_errors=True)
            store(path, kept / name / f"{new['target_version']}.json")
    for line in _outdated(pages, [report for report in reports.values() if report]):
        sys.stdout.write(f"{line}\n")
    if left:
        sys.stdout.write(f"not judged anew: {', '.join(left)}\n")
    if replace:
        _make_matrix(kept)
    return int(worse)


def _make_matrix(kept: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "conformance", "matrix", str(kept), "--report-dir", folder]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if ended.returncode > 1:  # 1 says that a target fails
            raise subprocess.CalledProcessError(ended.returncode, command)
        shutil.copy(Path(folder, "matrix.md"), kept / "MATRIX.md")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _latest(folder: Path) -> dict[str, Any] | None:
    found = [_read(path) for path in sorted(folder.glob("*.json"))]
    return max(found, key=lambda report: report.get("date", ""), default=None)


def _pages(folder: Path) -> list[Page]:
    """The pages on targets; those on loaders of adapters have no line of clauses."""
    found = []
    for path in sorted(folder.glob("*.md")):
        listed = dict(re.findall(r"^(Targets|Clauses): (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE))
        if len(listed) == 2:
            names = (frozenset(listed[key].split(", ")) for key in ("Targets", "Clauses"))
            found.append(Page(path.name, *names))
    return found


def _name(report: dict[str, Any]) -> str:
    return str(report["target"]).removeprefix("conformance.targets.")


def _failing(report: dict[str, Any]) -> set[str]:
    return {c["id"] for c in report["clauses"] if c["level"] == "MUST" and c["status"] in BAD}


def _changes(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """A line for each clause whose status changed, and one for those that are new or gone."""
    if old is None:
        return ["no report of it is committed"]
    same = old["target_version"] == new["target_version"]
    lines = [] if same else [f"version {old['target_version']} → {new['target_version']}"]
    lines += [f"{key} {old[key]} → {new[key]}" for key in ("profile", "lane") if old[key] != new[key]]
    before, now = ({c["id"]: c["status"] for c in report["clauses"]} for report in (old, new))
    broken = _failing(new)
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


def _without_page(report: dict[str, Any], pages: list[Page]) -> list[str]:
    explained = {name for page in pages if _name(report) in page.targets for name in page.clauses}
    unexplained = sorted(_failing(report) - explained)
    return [f"no page in conformance/findings on {', '.join(unexplained)}"] if unexplained else []


def _outdated(pages: list[Page], reports: list[dict[str, Any]]) -> list[str]:
    """A line for each page that lists a clause which each of its targets passes now."""
    lines = []
    for page in pages:
        failed = set().union(*(_failing(report) for report in reports if _name(report) in page.targets))
        if mended := sorted(page.clauses - failed):
            lines.append(f"conformance/findings/{page.name} lists {', '.join(mended)}, which no report of it fails")
    return lines


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), replace="--keep" in sys.argv[3:]))
