"""The autograd node for float32 and float64 on a CPU: the operands it takes, and errors equal to the reference's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import optimized
import reference
from conformance.bench.memory import saved_bytes
from optimized.nodes import plain, same_dtype

M, K, N, R = 5, 6, 4, 2


def operands(**changed: Any) -> dict[str, Any]:
    """Operands of a layer with a bias; x, A and B require gradients."""
    draws = torch.Generator().manual_seed(0)
    shapes = {"x": (M, K), "weight": (N, K), "bias": (N,), "lora_A": (R, K), "lora_B": (N, R)}
    found: dict[str, Any] = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    for name in ("x", "lora_A", "lora_B"):
        found[name].requires_grad_()
    return {**found, "scale": 2.0, **changed}


def as_dtype(dtype: torch.dtype) -> dict[str, Any]:
    """All operands, converted to one dtype."""
    return {name: t.to(dtype) if isinstance(t, Tensor) else t for name, t in operands().items()}


@pytest.mark.parametrize(
    ("given", "node"),
    [
        (operands(), "PlainLoRALinear"),
        (as_dtype(torch.float64), "PlainLoRALinear"),
        (operands(x=torch.ones(2, 5, K), bias=None), "PlainLoRALinear"),
        (as_dtype(torch.bfloat16), "SameDtypeLoRALinear"),
        (operands(lora_A=torch.ones(R, K).double(), lora_B=torch.ones(N, R, requires_grad=True).double()), "General"),
        (operands(scale=0.0), "General"),
        (operands(weight=None, bias=None), "General"),
        (operands(dropout=0.5, training=True), "General"),
        (operands(dropout=0.5), "PlainLoRALinear"),
    ],
)
def test_the_operands_choose_the_autograd_node(given: dict[str, Any], node: str) -> None:
    y = optimized.lora_linear(**given)
    assert type(y.grad_fn).__name__.removesuffix("Backward").startswith(node)


WRONG: list[dict[str, Any]] = [
    {"x": torch.ones(M, K + 1)},
    {"x": torch.tensor(1.0)},
    {"x": torch.ones(M, K).double()},
    {"weight": torch.ones(N, K + 1)},
    {"weight": torch.ones(N + 1, K)},
    {"weight": torch.ones(K)},
    {"weight": torch.ones(N, K).double()},
    {"bias": torch.ones(1)},
    {"bias": torch.ones(M, N)},
    {"bias": torch.ones(N).double()},
    {"lora_A": torch.ones(R, K + 1)},
    {"lora_A": torch.ones(K)},
    {"lora_A": torch.ones(R, K).double()},
    {"lora_B": torch.ones(N, R + 1)},
    {"lora_B": torch.ones(N + 1, R)},
    {"lora_B": torch.ones(R)},
    {"lora_B": torch.ones(N, R).double()},
    {name: torch.ones(*shape, dtype=torch.int64) for name, shape in {
        "x": (M, K), "weight": (N, K), "bias": (N,), "lora_A": (R, K), "lora_B": (N, R)
    }.items()},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: " ".join(map(str, wrong)))
def test_wrong_operands_raise_the_references_message(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w") as expected:
        reference.lora_linear(**operands(**wrong))
    with pytest.raises(ValueError, match=r"\w") as refused:
        optimized.lora_linear(**operands(**wrong))
    assert str(refused.value) == str(expected.value)


class Marked(Tensor):
    """A tensor subclass, which may define its own products."""


@pytest.mark.parametrize("name", ["x", "weight", "lora_A", "lora_B"])
def test_tensor_subclasses_bypass_the_fused_nodes(name: str) -> None:
    given = operands()
    given[name] = given[name].detach().as_subclass(Marked)
    assert "LoRALinear" not in type(optimized.lora_linear(**given).grad_fn).__name__


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # raised by torch's decompositions
def test_functorch_transforms_give_the_references_results() -> None:
    given = operands()
    x, direction = given.pop("x").detach(), torch.ones(M, K)

    def found(package: Any) -> Tensor:
        return torch.cat([
            torch.func.jvp(lambda t: package.lora_linear(t, **given), (x,), (direction,))[1],
            torch.func.vmap(lambda t: package.lora_linear(t, **given))(x),
            torch.func.grad(lambda t: package.lora_linear(t, **given).sum())(x).detach()[:, :N],
        ])  # fmt: skip

    expected = found(reference)
    torch.testing.assert_close(found(optimized), expected)
    with forward_ad.dual_level():
        y = optimized.lora_linear(forward_ad.make_dual(x, direction), **given)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected[:M])


def test_autocast_affects_the_forward_pass_and_not_the_backward_pass() -> None:
    given = operands()
    with torch.autocast("cpu", torch.bfloat16):
        assert optimized.lora_linear(**given).dtype == torch.bfloat16
    y, g = optimized.lora_linear(**given), torch.randn(M, N, generator=torch.Generator().manual_seed(1))
    leaves = [given[name] for name in ("x", "lora_A", "lora_B")]
    outside = torch.autograd.grad(y, leaves, g, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(y, leaves, g)
    for ours, right in zip(inside, outside, strict=True):
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("tokens", [7, 2**15])
@pytest.mark.parametrize("needed", ["x", "bias", "lora_A", "lora_B", "x lora_A lora_B bias"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_plain_node_computes_the_same_as_the_same_dtype_node(tokens: int, needed: str, recompute: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, tokens, K, generator=draws).transpose(0, 1)
    given = {**operands(), "x": x, "recompute": recompute}
    leaves = [given[name].requires_grad_(name in needed.split()) for name in ("x", "bias", "lora_A", "lora_B")]
    leaves, g = [leaf for leaf in leaves if leaf.requires_grad], torch.ones(1).expand(tokens, 2, N)
    found = []
    for apply in (plain.plain_apply, same_dtype.same_dtype_apply):
        y = apply(*given.values())
        found.append([y, *torch.autograd.grad(y, leaves, g)])
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize(("recompute", "count"), [(False, M * R), (True, 0)])
def test_recomputing_saves_no_intermediate_tensor(recompute: bool, count: int) -> None:
    layer = optimized.LinearLoRA(torch.nn.Linear(K, N), R, use_memory_efficient_lora=recompute)
    assert saved_bytes(layer, torch.ones(M, K, requires_grad=True)) == 4 * count
