"""h = f(gate) ⊙ up, or f(up), per element; and h again with the gradients of gate and up, in one pass."""
# mypy: allow-incomplete-defs, allow-untyped-calls

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from optimized.kernels.tiles import INTERPRETED, TL_DTYPE, Config, accumulator, as_operand, as_stored, block, launch


@triton.jit
def value_and_slope(t, ACTIVATION: tl.constexpr):
    """f(t) and f′(t) in t's dtype; each is finite if its exact value is finite."""
    if ACTIVATION == "silu":
        gate = tl.sigmoid(t)
        value = t * gate
        slope = gate + value * (1 - gate)
    elif ACTIVATION == "relu2":
        positive = tl.where(t < 0, 0.0, t)  # tl.maximum would lose a NaN
        value = positive * positive
        slope = 2 * positive
    elif ACTIVATION == "gelu":
        share = 0.5 * (1 + tl.erf(t * 0.7071067811865476))
        value = t * share
        slope = share + t * 0.3989422804014327 * tl.exp(-0.5 * t * t)
    else:
        # (1 + tanh(z))/2 = σ(2z) and σ(2z)·σ(-2z) are computed from e = exp(-|2z|), accurately for both signs.
        square = t * t
        e = tl.exp(-tl.abs(1.5957691216057308 * t * (1 + 0.044715 * square)))
        share = tl.where(t < 0, e, 1.0) / (1 + e)
        both = e / ((1 + e) * (1 + e))
        value = t * share
        bend = 1.5957691216057308 * t * (1 + 0.134145 * square)
        slope = share + tl.where(both == 0, 0.0, both * bend)
    return value, slope


@triton.jit(do_not_specialize=["SIZE"])
def gated_activation_kernel(
    gate_ptr,
    up_ptr,
    h_ptr,
    SIZE,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of BLOCK elements of h; without a gate, gate_ptr is not read."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offs < SIZE
    up = as_operand(tl.load(up_ptr + offs, mask=inside, other=0.0), ACC)
    if GATED:
        gate = as_operand(tl.load(gate_ptr + offs, mask=inside, other=0.0), ACC)
        h = value_and_slope(gate, ACTIVATION)[0] * up
    else:
        h = value_and_slope(up, ACTIVATION)[0]
    tl.store(h_ptr + offs, as_stored(h, h_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["SIZE"])
def gated_activation_gradients_kernel(
    d_h_ptr,
    gate_ptr,
    up_ptr,
    h_ptr,
    d_gate_ptr,
    d_up_ptr,
    SIZE,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of BLOCK elements of h, d_gate and d_up; without a gate, gate_ptr and d_gate_ptr are not used."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offs < SIZE
    d_h = as_operand(tl.load(d_h_ptr + offs, mask=inside, other=0.0), ACC)
    up = as_operand(tl.load(up_ptr + offs, mask=inside, other=0.0), ACC)
    if GATED:
        gate = as_operand(tl.load(gate_ptr + offs, mask=inside, other=0.0), ACC)
        value, slope = value_and_slope(gate, ACTIVATION)
        h = value * up
        d_up = d_h * value
        tl.store(d_gate_ptr + offs, as_stored(d_h * up * slope, d_gate_ptr.dtype.element_ty), mask=inside)
    else:
        h, slope = value_and_slope(up, ACTIVATION)
        d_up = d_h * slope
    tl.store(d_up_ptr + offs, as_stored(d_up, d_up_ptr.dtype.element_ty), mask=inside)
    tl.store(h_ptr + offs, as_stored(h, h_ptr.dtype.element_ty), mask=inside)


def gated_activation(lifts: Sequence[torch.Tensor], activation: str) -> torch.Tensor:
    """h from gate and up, or from up alone.

    Args:
        lifts: gate and up, or up alone, of one shape and dtype; copied if not contiguous.
    Returns:
        h in their dtype; computed in float32 (float64 for float64) and rounded once.

    The grid is the number of blocks of BLOCK elements, which are independent. A block of 1024 keeps several 16-byte
    loads of each thread in flight.
    """
    gate, up = _both(lifts)
    h = torch.empty_like(up)
    if h.numel():
        config = gated_activation_config(h.numel())
        grid = (triton.cdiv(h.numel(), config.blocks["BLOCK"]),)
        launch(gated_activation_kernel, grid, gate, up, h, h.numel(), config=config, **_constants(lifts, activation))
    return h


def gated_activation_gradients(
    d_h: torch.Tensor, lifts: Sequence[torch.Tensor], activation: str
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """h, and the gradients of gate and up, or of up alone, from one reading of all operands.

    Args and grid are as in `gated_activation`; d_h has the shape and dtype of the lifts.
    """
    gate, up = _both(lifts)
    h, d_lifts = torch.empty_like(up), [torch.empty_like(up) for _ in lifts]
    if h.numel():
        config = gated_activation_config(h.numel())
        grid = (triton.cdiv(h.numel(), config.blocks["BLOCK"]),)
        tensors = (d_h.contiguous(), gate, up, h, d_lifts[0], d_lifts[-1])
        constants = _constants(lifts, activation)
        launch(gated_activation_gradients_kernel, grid, *tensors, h.numel(), config=config, **constants)
    return h, d_lifts


def gated_activation_config(size: int) -> Config:
    """One block size on a GPU; under the interpreter, blocks for the fewest programs."""
    if INTERPRETED:
        return Config({"BLOCK": block(size, 256, 4096, 16384)}, num_warps=1, num_stages=1)
    return Config({"BLOCK": 1024}, num_warps=4, num_stages=1)


def _both(lifts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up, contiguous; without a gate, up twice."""
    packed = [t.contiguous() for t in lifts]
    return packed[0], packed[-1]


def _constants(lifts: Sequence[torch.Tensor], activation: str) -> dict[str, object]:
    acc = TL_DTYPE[accumulator(lifts[0].dtype)]
    return {"GATED": len(lifts) == 2, "ACTIVATION": activation, "ACC": acc}
