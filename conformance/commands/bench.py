"""`loraspec bench`: time and memory of layers, relative to the frozen `nn.Linear` that they adapt."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from conformance.bench import cases
from conformance.commands import output
from conformance.errors import UsageError, known
from conformance.numerics.dtypes import FLOAT_DTYPES

EXIT_CODES = """\
exit codes: 0 every target is ranked; 1 a target fails a clause on what is timed (forward, gradients, layouts), or
raises while it is timed; 2 usage, or a target does not import, does not bind or has no layer; 3 the suite itself
failed. A target that fails other clauses is ranked, and marked as not conforming."""


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    raw = argparse.RawDescriptionHelpFormatter
    bench = commands.add_parser(
        "bench", help="time layers relative to the frozen layer", epilog=EXIT_CODES, formatter_class=raw
    )
    bench.add_argument("targets", metavar="TARGET", nargs="+", help="package.module or package.module:attribute")
    several: dict[str, Any] = {"action": "extend", "nargs": "+"}
    bench.add_argument(
        "--shapes", **several, type=_shape, metavar="MxKxN", help="M tokens, K in, N out; also written M,K,N"
    )
    experts = "time lora_grouped_linear over E frozen experts; if a target lacks it, patch_moe_module"
    bench.add_argument("--experts", type=_positive, default=0, metavar="E", help=experts)
    bench.add_argument("--rank", **several, type=_positive, metavar="r", help="ranks for each shape (default 16)")
    bench.add_argument(
        "--dtype",
        action="append",
        metavar="NAME[,NAME…]",
        help=f"from {', '.join(FLOAT_DTYPES)} (default float32; on a GPU bfloat16)",
    )
    bench.add_argument("--dropout", type=_probability, default=0.0, metavar="P", help="adapter dropout (default 0)")
    bench.add_argument("--memory-efficient", action="store_true", help="set use_memory_efficient_lora=True")
    batches = "time lora_batched_linear on rows that use L adapters or none, in random order"
    bench.add_argument("--adapters", type=_number, default=0, metavar="L", help=batches)
    packed = "time adapters on a packed base, over the frozen layer before packing: nf4, fp4, int8_bitsandbytes, …"
    bench.add_argument("--base", default="", metavar="FORMAT", help=packed)
    bench.add_argument("--unranked", action="store_true", help="also time failing targets, without ranking them")
    bench.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    bench.add_argument("--rounds", type=_rounds, help="rounds, in which each layer runs once (default 41; on a GPU 15)")
    bench.add_argument("--seconds", type=_seconds, default=0.01, help="time of a layer in a round (default 0.01)")
    bench.add_argument("--report-dir", type=Path, default=Path("loraspec-report"), help="for bench.json, bench.md")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write only the JSON report, to this file")
    bench.add_argument("--plot", action="store_true", help="write bench.png to --report-dir; needs 'loraspec[demo]'")


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code, which is 1 if a target is not ranked."""
    if options.experts and (options.dropout or options.memory_efficient):
        raise UsageError("--experts times layers without dropout that save what they like: expected no other option")
    dtypes = _dtypes(options)
    if options.adapters and (options.dropout or options.memory_efficient):
        raise UsageError("--adapters times batches, which have neither --dropout nor --memory-efficient")
    _check_base(options)
    from conformance.bench import measurement, plot, session, table
    from conformance.bench.report import exit_code
    from conformance.report import files
    from conformance.report.terminal import console

    if options.plot:
        plot.check_installed()
    path = options.json or options.report_dir / "bench.json"
    for folder in dict.fromkeys((path.parent, *([options.report_dir] if options.plot else []))):
        files.prepare(folder)
    wanted = session.Wanted(
        targets=tuple(dict.fromkeys(options.targets)),
        sizes=cases.sizes(options.shapes or (), options.rank or (), options.device, options.experts),
        dtypes=dtypes,
        device=options.device,
        dropout=options.dropout,
        memory_efficient=options.memory_efficient,
        adapters=options.adapters,
        base=options.base,
        unranked=options.unranked,
        pace=measurement.Pace(options.rounds or (41 if options.device == "cpu" else 15), options.seconds),
    )
    found = session.run(wanted, console(stderr=True).print)
    written = [path]
    files.replace(path, json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if options.json is None:
        written.append(path.with_suffix(".md"))
        files.replace(written[-1], table.markdown(found))
    if options.plot and found.cases:
        written.append(options.report_dir / "bench.png")
        written[-1].write_bytes(plot.drawn(found))
    table.show(found)
    console().print(f"written to {', '.join(map(str, written))}")
    return exit_code(found.targets, found.cases)


def _check_base(options: argparse.Namespace) -> None:
    if not options.base:
        return
    from conformance.clauses.quantised.case import PACKABLE

    if options.experts or options.adapters:
        raise UsageError("--base times layers on a packed base, which have neither --experts nor --adapters")
    known([options.base], PACKABLE, "format")


def _dtypes(options: argparse.Namespace) -> tuple[str, ...]:
    """The given dtypes, or the default of the device."""
    known([options.device.partition(":")[0]], ("cpu", "cuda"), "device")
    if options.dtype is None:
        return ("float32",) if options.device == "cpu" else ("bfloat16",)
    names = tuple(dict.fromkeys(word.strip() for item in options.dtype for word in item.split(",")))
    known(names, FLOAT_DTYPES, "dtype")
    return names


def _shape(text: str) -> tuple[int, int, int]:
    try:
        return cases.shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; targets come before --shapes") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no rank or number of experts: expected 1, 2, …")
    return int(text)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of adapters: expected 1, 2, …")
    return int(text)


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds: expected 2, 3, …, for quartiles")
    return int(text)


def _probability(text: str) -> float:
    return _between(text, 0.0, 1.0, "dropout probability")


def _seconds(text: str) -> float:
    return _between(text, 1e-6, 3600.0, "number of seconds")


def _between(text: str, low: float, high: float, what: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not low <= found <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}: expected {low:g} to {high:g}")
    return found
