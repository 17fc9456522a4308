"""Print the time of the gate's steps, groups of clauses, and slowest trials, tests and twins, and store it in a file.

The numbers are CPU seconds and wall-clock seconds. `ci/cost.json` has one entry per line. A number in it changes only
if a measurement differs by a fifth, and a name is replaced only if others are clearly slower, so that differences in
the file come from the suite and not from the machine.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ci.cost_sources import KINDS, Cost, Costs, read  # noqa: E402

FILE = ROOT / "ci" / "cost.json"
DEAREST = {"files": 20, "trials": 20, "tests": 20, "twins": 20}  # entries listed, for kinds with many
SAME = 1.2  # measurements within this factor count as equal
NEGLIGIBLE = 0.2  # measurements within this many seconds count as equal
VERSIONS = ("torch", "triton", "numpy", "hypothesis", "pytest")

Entries = dict[str, dict[str, dict[str, float]]]


def chosen(costs: Costs, kept: Entries) -> Entries:
    """The listed entries of each kind by name: all, or the slowest, with an advantage for those listed before."""
    found: Entries = {}
    for kind in KINDS:
        known = kept.get(kind, {})
        worth = {name: cost.cpu * (SAME if name in known else 1) for name, cost in costs.kinds[kind].items()}
        names = sorted(worth, key=lambda name: (-worth[name], name))[: DEAREST.get(kind)]
        found[kind] = {name: _steady(costs.kinds[kind][name], known.get(name)) for name in sorted(names)}
    return found


def _steady(cost: Cost, known: dict[str, float] | None) -> dict[str, float]:
    """The cost as numbers; a number that counts as equal to the known one stays as it was."""
    measured = asdict(cost)
    if known is None:
        return {name: _rounded(seconds) for name, seconds in measured.items()}
    return {name: known[name] if _same(known[name], s) else _rounded(s) for name, s in measured.items()}


def _same(known: float, seconds: float) -> bool:
    low, high = sorted((known, seconds))
    return high - low <= NEGLIGIBLE or high <= low * SAME


def _rounded(seconds: float) -> float:
    """The seconds rounded to two significant digits and at most two decimals."""
    return float(f"{round(seconds, 2):.2g}")


def written(head: dict[str, Any], entries: Entries) -> str:
    """The text of the file: a line for each entry."""
    parts = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
    for kind, of_kind in entries.items():
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(cost)}" for name, cost in sorted(of_kind.items()))
        parts.append(f'"{kind}": {{\n{lines}\n}}' if of_kind else f'"{kind}": {{}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def head() -> dict[str, Any]:
    """The machine, the versions and the date of the measurement."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {"machine": machine(), "versions": found, "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"}


def machine() -> str:
    """The processors that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {named[0] if named else platform.machine()}"


def table(costs: Costs, recorded: dict[str, Any]) -> str:
    """The costs, the largest first, each with the recorded CPU seconds."""
    lines = [f"{'CPU s':>9} {'wall s':>9} {'recorded':>9}   on {recorded.get('machine', 'no machine so far')}"]
    for kind in KINDS:
        of_kind = sorted(costs.kinds[kind].items(), key=lambda item: (-item[1].cpu, item[0]))
        if not of_kind:
            continue
        whole = Cost()
        for _, cost in of_kind:
            whole.add(cost)
        shown = of_kind[: DEAREST.get(kind)]
        more = f", of which the dearest {len(shown)}:" if len(shown) < len(of_kind) else ":"
        lines.append(f"{whole.cpu:>9.1f} {whole.wall:>9.1f} {'':>9} {len(of_kind)} {kind}{more}")
        for name, cost in shown:
            known = recorded.get(kind, {}).get(name)
            lines.append(f"{cost.cpu:>9.1f} {cost.wall:>9.1f} {_before(known, cost):>9}   {name}")
    return "\n".join(lines)


def _before(known: dict[str, float] | None, cost: Cost) -> str:
    """The recorded number, marked if the measured one is larger or smaller."""
    if known is None:
        return "–"
    mark = "" if _same(known["cpu"], cost.cpu) else "↑ " if cost.cpu > known["cpu"] else "↓ "
    return f"{mark}{known['cpu']:g}"


def main(arguments: list[str], file: Path = FILE) -> int:
    """Print the table of the sources' costs; with --write, store it."""
    parser = argparse.ArgumentParser(prog="ci/cost", description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, help="folders of the gate, report.json, junit.xml")
    parser.add_argument("--write", action="store_true", help=f"write the costs to ci/{FILE.name}")
    asked = parser.parse_args(arguments)
    recorded = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    try:
        costs = read(asked.sources)
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"ci/cost: {error}\n")
        return 2
    sys.stdout.write(f"{table(costs, recorded)}\n")
    if asked.write:
        now = head()
        entries = chosen(costs, recorded if recorded.get("machine") == now["machine"] else {})
        measured = {kind: found if costs.kinds[kind] else recorded.get(kind, {}) for kind, found in entries.items()}
        file.write_text(written(now, measured), encoding="utf-8")
        sys.stdout.write(f"written to {file.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
