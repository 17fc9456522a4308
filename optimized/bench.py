"""Times a LoRA layer against its frozen one: ``python -m optimized.bench --shapes 64x256x256 --rank 8``."""

import argparse
import copy
import importlib.util
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import optimized


def main(arguments: Sequence[str] | None = None) -> None:
    """Time each layer, y and its gradients, over the frozen layer, y and dX; lower is better."""
    options = _parse(arguments)
    rows: list[dict[str, Any]] = []
    for shape in options.shapes:
        measured = measure(shape, options)
        Console().print(_table(measured, options))
        rows += measured
    if options.json is not None:
        machine = {"torch": torch.__version__, "device": options.device, "threads": torch.get_num_threads()}
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def measure(shape: tuple[int, int, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each layer: the median over rounds of its time ÷ the frozen layer's in the same round."""
    M, K, N = shape
    placed: dict[str, Any] = {"dtype": getattr(torch, options.dtype), "device": options.device}
    torch.manual_seed(0)
    frozen = nn.Linear(K, N, **placed).requires_grad_(False)
    x = torch.randn(M, K, **placed).requires_grad_()
    g = torch.randn(M, N, **placed)
    layers: dict[str, nn.Module] = {"frozen": frozen, **_adapted(frozen, options)}
    times = _interleaved(layers, x, g, options)
    rows = []
    for name, layer in layers.items():
        ratios = [t / f for t, f in zip(times[name], times["frozen"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        row = {"shape": f"{M}x{K}x{N}", "rank": options.rank, "dtype": options.dtype, "layer": name}
        row |= {"dropout": options.dropout, "microseconds": statistics.median(times[name]) * 1e6}
        row |= {"ratio": middle, "quartiles": [low, high]}
        row |= {"saved_bytes": saved_bytes(layer, x), "peak_bytes": peak_bytes(layer, x, g)}
        rows.append(row)
    return rows


def _interleaved(
    layers: dict[str, nn.Module], x: Tensor, g: Tensor, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds for a step of each layer, one entry a round; in a round each layer has its turn."""
    timers = {}
    for name, layer in layers.items():
        names = {"step": _step, "layer": layer, "x": x, "g": g}
        timers[name] = Timer("step(layer, x, g)", globals=names, num_threads=torch.get_num_threads())
    for timer in timers.values():
        timer.timeit(3)
    number = max(1, round(options.seconds / timers["frozen"].timeit(3).median))
    times: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(options.rounds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(number).median)
    return times


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that forward saves for backward beyond x and parameters, each storage counted once.

    Counted is what autograd saves. The layers of `optimized` keep no tensor as an attribute of a context; if
    another does, its peak tells.
    """
    known = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    del y
    return sum(storages.values())


def peak_bytes(layer: nn.Module, x: Tensor, g: Tensor) -> int:
    """The most memory that one forward and backward holds at a time beyond what was there before."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _step(layer, x, g)
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        _step(layer, x, g)
    held = peak = 0
    events: Any = profile.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class EagerLoRA(nn.Module):
    """The formula as one writes it, on the same parameters: ``x Wᵀ + b + scale · dropout((x Aᵀ) Bᵀ)``."""

    def __init__(self, layer: optimized.LinearLoRA) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        update = F.linear(F.linear(x, layer.lora_A.weight), layer.lora_B.weight) * layer.scale
        return F.linear(x, layer.weight, layer.bias) + F.dropout(update, layer.dropout_p, self.training)


def _adapted(frozen: nn.Linear, options: argparse.Namespace) -> dict[str, nn.Module]:
    """The layers to time, alike but for how they compute; B is not zero in any."""

    def lora(**kwargs: Any) -> optimized.LinearLoRA:
        layer = optimized.LinearLoRA(copy.deepcopy(frozen), options.rank, 2 * options.rank, options.dropout, **kwargs)
        nn.init.normal_(layer.lora_B.weight)
        return layer

    layers: dict[str, nn.Module] = {
        "eager": EagerLoRA(lora()),
        "fused": lora(),
        "memory-efficient": lora(use_memory_efficient_lora=True),
    }
    if options.device == "cuda":
        triton = optimized.patch_linear_module(copy.deepcopy(frozen), options.rank, 2 * options.rank, options.dropout)
        nn.init.normal_(triton.lora_B.weight)
        layers["triton"] = triton
    if importlib.util.find_spec("peft") is not None:
        import peft

        config = peft.LoraConfig(
            r=options.rank, lora_alpha=2 * options.rank, lora_dropout=options.dropout, target_modules=["0"]
        )
        model: Any = nn.Sequential(copy.deepcopy(frozen))
        model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
        layers["PEFT"] = model.base_model.model[0]
        nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    return layers


def _step(layer: nn.Module, x: Tensor, g: Tensor) -> None:
    layer(x).backward(g)
    x.grad = None
    for parameter in layer.parameters():
        parameter.grad = None


def _table(rows: list[dict[str, Any]], options: argparse.Namespace) -> Table:
    where = f"CPU, {torch.get_num_threads()} threads" if options.device == "cpu" else options.device
    shape = f"{rows[0]['shape']} r{options.rank}"
    table = Table(title=f"{shape}, {options.dtype}, dropout {options.dropout:g}, {where}")
    for heading in ("layer", "µs", "÷ frozen", "quartiles", "saved bytes", "peak bytes"):
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    for row in rows:
        low, high = row["quartiles"]
        table.add_row(
            row["layer"],
            f"{row['microseconds']:.0f}",
            f"{row['ratio']:.2f}",
            f"{low:.2f}–{high:.2f}",
            f"{row['saved_bytes']:,}",
            f"{row['peak_bytes']:,}",
        )
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m optimized.bench", description=main.__doc__)
    default = _shapes("64x256x256,512x1024x1024")
    parser.add_argument("--shapes", type=_shapes, default=default, metavar="MxKxN,…")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float64", "float32", "bfloat16", "float16"])
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=41, help="interleaved pairs to take the median of")
    parser.add_argument("--seconds", type=float, default=0.01, help="of the frozen layer in each round")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def _shapes(text: str) -> list[tuple[int, int, int]]:
    shapes = []
    for part in text.split(","):
        sizes = [int(size) for size in part.split("x") if size.isdecimal()]
        if len(sizes) != 3 or min(sizes) < 1 or part.count("x") != 2:
            raise argparse.ArgumentTypeError(f"{part!r}: expected MxKxN, for example 64x256x256")
        shapes.append((sizes[0], sizes[1], sizes[2]))
    return shapes


if __name__ == "__main__":
    main()
