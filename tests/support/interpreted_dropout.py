"""Checks that tests/test_counted_dropout.py runs with interpreted Triton kernels."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from optimized import TritonLinearLoRA, kernels
from optimized.dispatch.routes import ONE_KERNEL, ONE_READING
from optimized.dropout import CountedDropout
from optimized.kernels.dropout_mask import is_kept
from optimized.kernels.tiles import Config
from optimized.philox import Kept, philox
from tests.test_memory import saved_bytes

KEPT = Kept(0x3A9F_0C11_D5E8_77B2, 45_000)
R, SCALE = 3, 0.5


@triton.jit
def tile_kernel(out_ptr, seed: tl.int64, limit: tl.int32, row, column, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Store the mask of one tile as int8."""
    offs = tl.arange(0, ROWS)
    keep = is_kept(seed, limit, row + offs, column, WIDTH)
    tl.store(out_ptr + offs[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], keep.to(tl.int8))


def tiles() -> None:
    """Each tile is a part of the mask that PyTorch computes, also where indices need 31 bits and offsets 62 bits."""
    mask = KEPT.mask(48, 96)
    for rows, width, row, column in ((16, 16, 0, 0), (16, 16, 3, 72), (32, 64, 16, 32), (16, 8, 0, 88)):
        assert torch.equal(_tile(KEPT, rows, width, row, column), mask[row : row + rows, column : column + width])
    last = 2**31 - 16
    for row, column in ((last, 0), (0, last), (last, last), (2**16, 2**16)):  # in the last tile row · column is 2³²
        places = torch.arange(row, row + 16)[:, None], torch.arange(column // 8, column // 8 + 2)[None, :]
        words = philox(KEPT.seed, (places[1], places[0], torch.tensor(0), torch.tensor(0)))
        lanes = torch.stack([word >> shift & 0xFFFF for word in words for shift in (0, 16)], -1)
        found = _tile(KEPT, 16, 16, row, column)
        assert torch.equal(found, (lanes < KEPT.limit).to(torch.uint8).view(16, 16))
        assert not torch.equal(found, _tile(KEPT, 16, 16, 0, 0))
    assert not _tile(KEPT._replace(limit=0), 16, 16, 0, 0).any()
    bits = int(philox(KEPT.seed, (torch.tensor(0),) * 4)[0]) & 0xFFFF  # the random bits of the first element
    for limit, keeps in ((bits, False), (bits + 1, True)):
        kept = KEPT._replace(limit=limit)
        assert bool(_tile(kept, 16, 16, 0, 0)[0, 0]) == bool(kept.mask(1, 1)) == keeps


def _tile(kept: Kept, rows: int, width: int, row: int, column: int) -> Tensor:
    out = torch.full((rows, width), 7, dtype=torch.uint8)
    tile_kernel[(1,)](out, *kept, row, column, ROWS=rows, WIDTH=width)
    return out


def products() -> None:
    """Each kernel applies the formula's mask in every configuration; small integers make all results exact."""
    torch.manual_seed(0)
    M, C = 40, 72
    mask = KEPT.mask(M, C).double()
    wide, narrow, middle = (torch.randint(-4, 5, shape).double() for shape in ((M, C), (R, C), (M, R)))
    held = wide * mask
    for m, c, r, x in ((16, 32, 16, wide), (64, 16, 32, wide.t().contiguous().t())):
        with _blocks(m, c, r):
            assert torch.equal(kernels.lora_shrink(x, narrow, torch.float64, KEPT), held @ narrow.t())
            for out in (torch.empty(C, R).double(), torch.empty(R, C).double().t()):
                kernels.weight_grad(x, middle, SCALE, torch.float64, out, KEPT)
                assert torch.equal(out, SCALE * held.t() @ middle)
            assert torch.equal(
                kernels.shrink_and_grad(x, narrow.t(), middle, SCALE, torch.float64, out.zero_(), kept=KEPT),
                held @ narrow.t(),
            )
            assert torch.equal(out, SCALE * held.t() @ middle)
            update = mask * (SCALE * middle @ narrow)
            for added in (False, True):
                y = wide.clone()
                kernels.lora_expand(middle, narrow.t(), SCALE, torch.float64, y, added, KEPT)
                assert torch.equal(y, update + added * wide)
    x, w, b = torch.randint(-4, 5, (M, 24)), torch.randint(-4, 5, (80, 24)), torch.randint(-4, 5, (80, R))
    exact = (x @ w.t()).double() + KEPT.mask(M, 80) * (SCALE * middle @ b.t().double())
    for m, n in ((16, 32), (64, 16)):
        config = Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": 16, "BLOCK_R": 16}, 1, 1)
        operands = x.bfloat16(), w.bfloat16(), None, middle.float(), b.bfloat16()
        y = kernels.linear_expand(*operands, SCALE, config, KEPT)
        assert torch.equal(y.double(), exact.bfloat16().double())


@contextlib.contextmanager
def _blocks(m: int, c: int, r: int) -> Iterator[None]:
    """Compute every low-rank product in blocks of m rows, c columns and r ranks."""
    sizes = {"M": m, "N": c, "K": c, "R": r}
    with contextlib.ExitStack() as stack:
        for name, axes in (
            ("lora_shrink", "MRK"),
            ("lora_expand", "MNR"),
            ("weight_grad", "MNR"),
            ("shrink_and_grad", "MNR"),
        ):
            config = Config({f"BLOCK_{axis}": sizes[axis] for axis in axes}, num_warps=1, num_stages=1)
            module = sys.modules[f"optimized.kernels.{name}"]
            stack.enter_context(mock.patch.object(module, f"{name}_config", return_value=config))
        yield


def layers() -> None:
    """The output, every gradient and second derivatives equal the formula's with the mask of the layer's seed.

    They do also when the backward pass runs under autocast, and when one kernel computes base product and update.
    """
    joined: list[bool] = []
    one_kernel = kernels.linear_expand
    with mock.patch.object(
        kernels, "linear_expand", lambda *a, **o: joined.append(o["kept"] is not None) or one_kernel(*a, **o)
    ):
        for position, recompute in itertools.product(("pre", "post"), (False, True)):
            for dtype, routes in ((torch.float64, ()), (torch.bfloat16, (ONE_READING, ONE_KERNEL))):
                layer, x = _layer(dtype, position, recompute)
                layer.routes = routes
                for needs in (("x", "A", "B"), ("B",), ("A",), ("x",)):
                    _compare(layer, x, needs)
    assert {*joined} == {False, True}


def _compare(layer: TritonLinearLoRA, x: Tensor, needs: tuple[str, ...]) -> None:
    """Compare y and the gradients of these operands bit for bit; all values are small integers."""
    parts = {"x": x, "A": layer.lora_A.weight, "B": layer.lora_B.weight}
    for name, part in parts.items():
        part.requires_grad_(name in needs)
    leaves = [parts[name] for name in needs]
    g = torch.randint(-1, 2, (2, 35, N)).to(x.dtype)
    y, mask = _called(layer, x)
    exact = _formula(layer, x, mask)
    said = layer.dropout_position, layer.use_memory_efficient_lora, x.dtype, needs
    assert torch.equal(y, exact), said
    right = torch.autograd.grad(exact, leaves, g, create_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = torch.autograd.grad(y, leaves, g, retain_graph=True)
    for found in (torch.autograd.grad(y, leaves, g, retain_graph=True), cast):
        assert all(map(torch.equal, found, right)), said
    if len(needs) == 3:
        again = torch.autograd.grad(y, leaves, g, create_graph=True)
        second, want = (torch.autograd.grad([t.sum() for t in ts], leaves) for ts in (again, right))
        assert all(map(torch.equal, second, want)), said


def saved() -> None:
    """Forward saves x Aᵀ for backward but no mask; with the memory-efficient option it saves nothing."""
    for position, recompute in itertools.product(("pre", "post"), (False, True)):
        layer, x = _layer(torch.float32, position, recompute)
        assert saved_bytes(layer, x.requires_grad_()) == (0 if recompute else 70 * R * 4)


K, N = 40, 24


def _layer(dtype: torch.dtype, position: str, recompute: bool) -> tuple[TritonLinearLoRA, Tensor]:
    """Return a layer whose operands are small integers, and an input."""
    torch.manual_seed(0)
    options: Any = {"dropout": 0.5, "dropout_position": position, "use_memory_efficient_lora": recompute}
    layer = TritonLinearLoRA(nn.Linear(K, N, dtype=dtype), dim=R, alpha=R, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape))
    return layer, torch.randint(-1, 2, (2, 35, K)).to(dtype)


def _called(layer: TritonLinearLoRA, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer's output and the mask that its seed gives, reshaped from [70, K] or [70, N]."""
    torch.manual_seed(7)
    y = layer(x)
    torch.manual_seed(7)
    kept = CountedDropout.seeded(0.5, layer.dropout_position).kept
    assert kept is not None
    return y, kept.mask(70, K if layer.dropout_position == "pre" else N).double().view(2, 35, -1)


def _formula(layer: TritonLinearLoRA, x: Tensor, mask: Tensor) -> Tensor:
    """Compute the layer's formula in float64 and round once."""
    A, B, weight, bias = (t.double() for t in (layer.lora_A.weight, layer.lora_B.weight, layer.weight, layer.bias))
    pre, wide = layer.dropout_position == "pre", x.double()
    update = 2 * layer.scale * ((wide * mask if pre else wide) @ A.t() @ B.t())
    return (wide @ weight.t() + bias + (update if pre else update * mask)).to(x.dtype)


TASKS: tuple[Callable[[], None], ...] = (tiles, products, layers, saved)
