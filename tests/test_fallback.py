"""The PyTorch fallback equals the reference where Triton cannot run; the clauses run only the kernels."""

from __future__ import annotations

from tests.support.commands import python

CODE = """
import optimized, reference, torch
from optimized.dispatch.integers import why_not_kernel
torch.manual_seed(0)
operands = [torch.randn(shape, requires_grad=True) for shape in ((5, 3), (2, 3), (4, 2))]
print(optimized.why_not_triton(*operands))
print(why_not_kernel(optimized.QuantizedLinear(torch.ones(2, 3), None, 8), torch.ones(1, 3)))
found = []
for package in (optimized, reference):
    y = package.LoRATritonFunction.apply(*operands, 1.5, torch.float32)
    found.append((y, *torch.autograd.grad(y.square().sum(), operands)))
for ours, right in zip(*found, strict=True):
    torch.testing.assert_close(ours, right)
"""


def test_the_pytorch_fallback_equals_the_reference() -> None:
    ended = python("-c", CODE, TRITON_INTERPRET="0")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["the operands are on the CPU and TRITON_INTERPRET is not 1"] * 2
