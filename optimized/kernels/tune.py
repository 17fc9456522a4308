"""Measure block configurations on the local GPU: ``python -m optimized.kernels.tune --device cuda --table FILE``.

Each candidate is checked against float32 products before it is timed; a wrong or failing candidate is left out. The
best one becomes a measured entry of the table, together with the time of the operations that the kernel replaces, so
that `dispatch.routes` uses the kernel only where it is faster. Without ``--table`` the table of the package is
rewritten.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optimized.kernels.linear_expand import linear_expand
from optimized.kernels.lora_expand import lora_expand
from optimized.kernels.lora_shrink import lora_shrink
from optimized.kernels.shrink_and_grad import shrink_and_grad
from optimized.kernels.tiles import Config
from optimized.kernels.tuned import MEASURED, TABLE, bucket, entries, write
from optimized.kernels.weight_grad import weight_grad
from optimized.tuned_kernels import LINEAR_EXPAND, LINEAR_EXPAND_BACKWARD, MOST_ONE_READING_RANK

Clock = Callable[[Callable[[], Any]], float]
MOST_ERROR = 2.0**-6  # relative to an element plus the root mean square: four ulps of bfloat16
FEATURES = ((1024, 1024), (4096, 4096), (4096, 14336), (14336, 4096))  # K, N
TOKENS, RANKS = (1024, 4096, 8192, 16384), (16, 32, 64, 128)


def candidates(kernel: str, R: int) -> Iterator[Config]:
    """The candidate configurations; one that does not fit a device fails there and is left out."""
    if kernel == "shrink_and_grad":
        for m, n, warps, stages in itertools.product((32, 64), (256, 512), (4, 8), (2, 3)):
            blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_R": 16 if R <= 16 else MOST_ONE_READING_RANK}
            yield Config(blocks, warps, stages)
    else:
        for (m, n), stages in itertools.product(((128, 256), (256, 128), (128, 128), (64, 256)), (3, 4)):
            yield Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": 64, "BLOCK_R": 16}, 8, stages)


def tune(kernel: str, dtype: torch.dtype, device: str, sizes: dict[str, int], clock: Clock) -> dict[str, Any] | None:
    """The measured entry of one kernel and size, or None if no candidate is correct.

    Args:
        sizes: M, N, K and R.   clock: measures the milliseconds of one call.
    """
    operands = _operands(dtype, device, **sizes)
    run, instead, exact, written = (
        _shrink_and_grad(*operands) if kernel == "shrink_and_grad" else _linear_expand(kernel, *operands)
    )
    times: list[tuple[float, Config]] = []
    for config in candidates(kernel, sizes["R"]):
        _spoil(written, exact)
        try:
            right = all(_is_right(ours, want) for ours, want in zip(run(config), exact, strict=True))
        except Exception as error:  # noqa: BLE001  (a configuration that does not fit the device)
            sys.stderr.write(f"{kernel} {sizes} {config}: {type(error).__name__}\n")
            continue
        if right:
            times.append((clock(lambda config=config: run(config)), config))  # type: ignore[misc]
        else:
            sys.stderr.write(f"{kernel} {sizes} {config}: wrong\n")
    if not times:
        return None
    best, config = min(times, key=lambda timed: timed[0])
    axes = "MNR" if kernel == "shrink_and_grad" else "MNKR"
    return {
        "kernel": kernel,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "dtype": str(dtype).removeprefix("torch."),
        **{axis: bucket(axis, sizes[axis]) if axis in axes else None for axis in "MNKR"},
        "blocks": config.blocks,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "origin": MEASURED,
        "milliseconds": best,
        "instead_milliseconds": clock(instead),
        "versions": {"torch": torch.__version__, "triton": _triton_version()},
    }


def merged(known: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The known entries, with new measurements in place of old ones."""

    def key(entry: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(entry[field] for field in ("kernel", "device", "dtype", "M", "N", "K", "R"))

    fresh = {key(entry) for entry in new}
    return [entry for entry in known if key(entry) not in fresh] + new


def main(arguments: list[str] | None = None) -> int:
    """Tune every size and write the table; return 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m optimized.kernels.tune", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--dtype", default="bfloat16,float16")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("there is no GPU at hand: block configurations are measured on a GPU\n")
        return 2
    from triton.testing import do_bench

    known = entries(chosen.table) if chosen.table.exists() else []
    for name, kernel, sizes in runs(chosen.dtype.split(",")):
        entry = tune(
            kernel, getattr(torch, name), chosen.device, sizes, lambda step: do_bench(step, return_mode="median")
        )
        known = merged(known, [] if entry is None else [entry])
        write(known, chosen.table)  # after each entry, because a later one may crash
    return 0


def runs(dtypes: list[str]) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Dtype, kernel and sizes of every entry; `shrink_and_grad` does not depend on K, and has one entry per N."""
    for dtype, (K, N), M, R in itertools.product(dtypes, FEATURES, TOKENS, RANKS):
        sizes = {"M": M, "N": N, "K": K, "R": R}
        if R <= MOST_ONE_READING_RANK and N not in [n for _, n in FEATURES[: FEATURES.index((K, N))]]:
            yield dtype, "shrink_and_grad", sizes
        if dtype == "bfloat16":
            yield dtype, LINEAR_EXPAND, sizes
            yield dtype, LINEAR_EXPAND_BACKWARD, sizes


def _operands(dtype: torch.dtype, device: str, M: int, N: int, K: int, R: int) -> tuple[Tensor, ...]:
    """x, W, g, A, B and S, with all values of order 1."""
    draws = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=dtype, device=device)

    x, weight, g, A, B = drawn(M, K), drawn(N, K) / K**0.5, drawn(M, N), drawn(R, K) / K**0.5, drawn(N, R)
    return x, weight, g, A, B, lora_shrink(x, A, dtype)


def _shrink_and_grad(
    x: Tensor, _weight: Tensor, g: Tensor, _A: Tensor, B: Tensor, S: Tensor
) -> tuple[Any, Any, Any, list[Tensor]]:
    """T and dB by `shrink_and_grad`, by the two kernels it replaces, and in float32; and its output tensors."""
    out = torch.full_like(B, torch.nan)

    def run(config: Config) -> tuple[Tensor, Tensor]:
        return shrink_and_grad(g, B, S, 1.0, x.dtype, out, config), out

    def instead() -> None:
        weight_grad(g, S, 1.0, x.dtype, out)
        lora_shrink(g, B.mT, x.dtype)

    return run, instead, (g.float() @ B.float(), g.float().mT @ S), [out]


def _linear_expand(
    kernel: str, x: Tensor, weight: Tensor, _g: Tensor, _A: Tensor, B: Tensor, S: Tensor
) -> tuple[Any, Any, Any, list[Tensor]]:
    """y by `linear_expand`, by update and large product in place, and in float32; W and B have the pass's layout."""
    exact = x.float() @ weight.float().mT + S @ B.float().mT
    if kernel == LINEAR_EXPAND_BACKWARD:
        weight, B = weight.t().contiguous().t(), B.t().contiguous().t()

    def run(config: Config) -> tuple[Tensor]:
        return (linear_expand(x, weight, None, S, B, 1.0, config),)

    def instead() -> None:
        y = x.new_empty(x.shape[0], weight.shape[0])
        lora_expand(S, B, 1.0, x.dtype, y)
        y.addmm_(x, weight.mT)

    return run, instead, (exact,), []


def _spoil(written: list[Tensor], like: tuple[Tensor, ...]) -> None:
    """Fill the output, and memory that may be allocated next, with NaN, to remove the previous candidate's result."""
    for tensor in written:
        tensor.fill_(torch.nan)
    for tensor in like:
        for dtype in (tensor.dtype, torch.bfloat16):
            torch.full_like(tensor, torch.nan, dtype=dtype)


def _is_right(found: Tensor, exact: Tensor) -> bool:
    """Whether every element is close to the exact one; NaN is never close."""
    usual = exact.square().mean().sqrt()
    return bool(((found.float() - exact).abs() <= MOST_ERROR * (exact.abs() + usual)).all())


def _triton_version() -> str:
    import triton

    return str(triton.__version__)


if __name__ == "__main__":
    sys.exit(main())
