"""A benchmark as text: a table for each case, the targets that are not ranked or do not conform, and the ceilings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from conformance.bench.measured_case import FROZEN, MEASURED, UNRANKED, Costs, MeasuredCase
from conformance.bench.report import BenchReport
from conformance.report.terminal import console, listed

WIDE = 200  # characters of a line, if the output is not a terminal
FAILS = "fails, not ranked"
MARK = "not conforming"
NOTES = (
    "÷ frozen is the ratio to the frozen layer's time in the same round, as median and quartiles; ÷ 1 is the median "
    "ratio to the layer in place 1. FLOP/s and bytes/s are the formula's work in the median time, with its share of "
    "the ceiling; ÷ roof is the time over the least time that the ceilings allow. Saved is the memory that forward "
    "keeps for backward, without x, parameters and buffers; peak is the largest memory in use at a time."
)


def headings(places: int) -> list[str]:
    """The columns of a case with `places` ranked layers."""
    others = [f"÷ {place}" for place in range(1, places + 1)] if places > 1 else []
    return ["", "layer", "time", "÷ frozen", "quartiles", *others, "FLOP/s", "bytes/s", "÷ roof", "saved", "peak"]


def rows(case: MeasuredCase, failed: Mapping[str, str]) -> Iterator[list[str]]:
    """The cells of a case: the frozen layer, the layers by place, and the layers and targets without a place.

    Args:
        failed: for each target that does not pass, how much it fails.
    """
    names = [label for label, _ in case.placed]
    targets = {row.label: row.target or "" for row in case.layers}
    if case.frozen.costs:
        yield _cells("", case.frozen.label, case.frozen.costs, names)
    for place, (label, costs) in enumerate(case.placed, 1):
        fails = failed.get(targets[label])
        yield _cells(str(place), f"{label}, {MARK}: fails {fails}" if fails else label, costs, names)
    for row in case.layers:
        if row.status == UNRANKED and row.costs:
            yield _cells("–", f"{row.label}, fails {failed[row.target or '']}", row.costs, names)
        elif row.status != MEASURED:
            yield ["–", row.label, row.status]
    for spec in failed:
        if all(row.target != spec for row in case.layers):
            yield ["–", spec, FAILS]


def failed(found: BenchReport) -> dict[str, str]:
    """For each target that does not pass, how much it fails; the sentences below the table name the clauses."""
    counts = {target.spec: len(target.failing) for target in found.targets if not target.passes}
    return {spec: f"{count} clause{'s' if count != 1 else ''}" for spec, count in counts.items()}


def title(case: MeasuredCase, found: BenchReport) -> str:
    """The title of a case's table."""
    where = f"{found.device_name}, {found.threads} threads" if found.device == "cpu" else found.device_name
    return f"{case.case} on {where}"


def sentences(found: BenchReport) -> list[str]:
    """The sentences below the tables."""
    limits = found.ceilings
    reached = ", ".join(f"{_scaled(value)}FLOP/s in {dtype}" for dtype, value in limits.flops.items())
    size = limits.product
    said = [
        f"Ceilings: {reached} (a product of {size}x{size}x{size}), {_scaled(limits.bytes)}B/s (a copy).",
        f"{found.pace.rounds} rounds, interleaved; load {found.load_at_start:.1f} at the start on "
        f"{found.processors} processors.",
    ]
    costs = [row.costs for case in found.cases for row in (case.frozen, *case.layers) if row.costs]
    if any(each.of_flops_ceiling > 1 for each in costs):
        said.append("A share of FLOP/s above 100% says that the machine was busier while its ceilings were measured.")
    for target in found.targets:
        name = target.spec + (f" {target.version}" if target.version else "")
        if target.passes:
            said.append(f"{name}: {target.clauses} clauses of group {target.group} pass.")
        elif target.ranked:
            others = listed(list(target.failing))
            said.append(
                f"{name} is {MARK}: it fails {others}, none on what is timed; see `loraspec run {target.spec}`."
            )
        else:
            clauses = listed(list(dict.fromkeys([*target.disqualifying, *target.failing])))
            timed = any(row.target == target.spec for case in found.cases for row in case.layers)
            hint = "" if timed else "; --unranked times it all the same"
            said.append(f"{name} {FAILS}: {clauses}; see `loraspec run {target.spec}`{hint}.")
    return said


def show(found: BenchReport) -> None:
    """Print a benchmark."""
    from rich import box
    from rich.table import Table

    out = console()
    if not out.is_terminal:
        out.width = WIDE
    for case in found.cases:
        table = Table(title=title(case, found), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
        for heading in headings(len(case.placed)):
            table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
        for cells in rows(case, failed(found)):
            table.add_row(*cells)
        out.print(table)
    for sentence in (NOTES, *sentences(found)) if found.cases else sentences(found):
        out.print(sentence)


def markdown(found: BenchReport) -> str:
    """The same tables in Markdown."""
    lines = []
    for case in found.cases:
        columns = headings(len(case.placed))
        lines += [f"**{title(case, found)}**", "", _line(columns), _line(["---"] * 2 + ["---:"] * (len(columns) - 2))]
        lines += [_line(cells + [""] * (len(columns) - len(cells))) for cells in rows(case, failed(found))] + [""]
    return "\n".join([*lines, NOTES, "", *(f"- {sentence}" for sentence in sentences(found))]) + "\n"


def _cells(place: str, label: str, costs: Costs, names: list[str]) -> list[str]:
    over, frozen = costs.over, costs.over.get(FROZEN)
    ratio, quartiles = "1", ""
    if frozen is not None:
        low, high = frozen.quartiles
        ratio, quartiles = f"{frozen.median:.2f}", f"{low:.2f}–{high:.2f}"
    others = [f"{over[name].median:.2f}" if name in over else "" for name in names] if len(names) > 1 else []
    return [
        place,
        label,
        _time(costs.seconds),
        ratio,
        quartiles,
        *others,
        f"{_scaled(costs.flops_per_second)} {costs.of_flops_ceiling:.0%}",
        f"{_scaled(costs.bytes_per_second)} {costs.of_bytes_ceiling:.0%}",
        f"{costs.over_roofline:.2f}",
        f"{_scaled(costs.saved_bytes)}B",
        f"{_scaled(costs.peak_bytes)}B",
    ]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _scaled(value: float) -> str:
    """Three digits and a prefix, such as `45.2 G`."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"
