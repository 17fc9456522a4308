"""Fused blocks: right variants pass every clause, errors name the projection, kernels agree with PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import optimized
import reference
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.check_case import check_case
from conformance.target.target import Target
from tests.campaigns.variants.blocks import VARIANTS
from tests.support.commands import python

JUDGED = ("FUS-QKV", "FUS-MLP", "FUS-LAYOUT", "FUS-MIXED", "FUS-SATURATED", "FUS-BWD-DX", "FUS-BWD-DA", "FUS-BWD-DB")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, as trials do: starting a second thread takes longer than these small products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_most_cases_of_saturated_activations_decide_in_16_bits() -> None:
    clause = load_all()["FUS-SATURATED"]
    (subject,) = Target.of(VARIANTS["Right"], "right").subjects(clause)
    examination = Examination(clause, subject, "bfloat16", PROFILES["quick"])
    undecided = 0
    for index in range(40):
        try:
            check_case(clause, subject, examination.case(index))
        except Inconclusive:
            undecided += 1
    assert undecided <= 2


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_no_clause_fails_a_right_variant_of_the_blocks(name: str, dtype: str) -> None:
    target = Target.of(VARIANTS[name], name)
    profile = dataclasses.replace(PROFILES["quick"], volume=4, shrinks=0)
    for clause in map(load_all().get, JUDGED):
        assert clause is not None
        for subject in target.subjects(clause):
            result = Examination(clause, subject, dtype, profile).run()
            assert result.status == "pass", f"{clause.id} {subject.name} {result.case}\n{result.message}"


def projection(n: int, k: int, r: int = 2) -> tuple[Any, ...]:
    return torch.ones(n, k), None, torch.ones(r, k), torch.ones(n, r), 1.0


@pytest.mark.parametrize("package", [reference, optimized], ids=["reference", "optimized"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((projection(4, 3), projection(5, 3), projection(2, 4), "silu"), "gate gives 4 features but up gives 5"),
        (
            (None, projection(4, 3), projection(2, 4), "swish"),
            "activation is 'swish': expected one of silu, gelu, gelu_",
        ),
        ((None, projection(4, 2), projection(2, 4)), r"up: lora_A is \[2, 2\] but x has 3 features"),
        ((None, projection(4, 3), projection(2, 5)), r"down: lora_A is \[2, 5\] but x has 4 features"),
        ((None, projection(4, 3)[:4], projection(2, 4)), r"up is 4 of them: expected \(weight, bias, lora_A"),
        ((None, 3.0, projection(2, 4)), r"up is float: expected \(weight, bias, lora_A, lora_B, scale\)"),
        ((None, (None, *projection(4, 3)[1:]), projection(2, 4)), "up: weight is None: a projection has one"),
        ((None, (*projection(4, 3)[:3], None, 1.0), projection(2, 4)), "up: lora_B is None but lora_A is not"),
    ],
)
def test_an_error_of_the_feed_forward_block_names_the_projection(package: Any, arguments: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        package.lora_mlp(torch.ones(2, 3), *arguments)


def test_an_error_of_query_key_and_value_names_the_projection() -> None:
    bad = (*projection(4, 3)[:3], torch.ones(4, 3), 1.0)
    for package in (reference, optimized):
        with pytest.raises(ValueError, match=r"k: lora_B is \[4, 3\] but lora_A is \[2, 3\]"):
            package.lora_qkv(torch.ones(2, 3), projection(4, 3), bad, projection(4, 3))


def leaves(*widths: tuple[int, int]) -> list[Tensor]:
    shapes = [shape for n, k in widths for shape in ((2, k), (n, 2))]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("gated", [True, False])
def test_second_derivatives_of_the_feed_forward_block_are_right(gated: bool) -> None:
    torch.manual_seed(0)
    widths = [(4, 3), (4, 3), (2, 4)][0 if gated else 1 :]
    weights = [torch.randn(width).double() for width in widths]
    x = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, *adapters: Tensor) -> Any:
        *gate, up, down = [(w, None, *adapters[2 * i : 2 * i + 2], 1.5) for i, w in enumerate(weights)]
        return optimized.lora_mlp(x, gate[0] if gate else None, up, down, "gelu")

    assert torch.autograd.gradgradcheck(call, (x, *leaves(*widths)))


@pytest.mark.parametrize("frozen", [(), (0,), (1, 4), (0, 2, 3, 5)], ids=str)
def test_second_derivatives_of_query_key_and_value_are_right(frozen: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    widths = [(4, 3), (2, 3), (2, 3)]
    weights = [torch.randn(width).double() for width in widths]

    def call(x: Tensor, *adapters: Tensor) -> Any:
        return optimized.lora_qkv(x, *((w, None, *adapters[2 * i : 2 * i + 2], 1.5) for i, w in enumerate(weights)))

    operands = [torch.randn(2, 3).double().requires_grad_(), *leaves(*widths)]
    for number in frozen:
        operands[number].requires_grad_(False)
    assert torch.autograd.gradgradcheck(call, operands)


def test_second_derivatives_are_right_when_lora_a_depends_on_x() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    weight, B = torch.randn(4, 3).double(), torch.randn(4, 2).double()

    def call(package: Any) -> Tensor:
        lora_A = x * 2  # the path through lora_A must not be counted twice
        p = (weight, None, lora_A, B, 1.5)
        y = sum(package.lora_qkv(x, p, p, p)).square().sum()
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return second

    torch.testing.assert_close(call(optimized), call(reference))


KERNELS = """
import torch
from optimized import activations, kernels
from reference.mlp import ACTIVATIONS

def computed(d_h, lifts, activation):
    h, gradients = activations.gated_activation_gradients(d_h, lifts, activation)
    return [activations.gated_activation(lifts, activation), h, *gradients]

torch.manual_seed(0)
assert kernels.INTERPRETED
why = activations.why_not_triton
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    for activation in ACTIVATIONS:
        for count in (1, 2):
            lifts = [torch.randn(3, 100).mul_(3).to(dtype) for _ in range(count)]
            lifts[0][0, :4] = torch.tensor([torch.nan, 200.0, -200.0, 0.0]).to(dtype)
            d_h = torch.randn(3, 100).to(dtype)
            assert why(d_h, *lifts) is None
            found = computed(d_h, lifts, activation)
            activations.why_not_triton = lambda *_: "asked not to"
            want = computed(d_h, lifts, activation)
            activations.why_not_triton = why
            for ours, right in zip(found, want, strict=True):
                assert torch.isnan(ours[0, 0])
                unit = torch.finfo(dtype).eps  # slopes are sums of some ten that may cancel, times d_h and up
                torch.testing.assert_close(ours, right, rtol=4 * unit, atol=64 * unit, equal_nan=True)
print("compared")
"""


def test_the_interpreted_kernels_agree_with_pytorch() -> None:
    ended = python("-c", KERNELS, TRITON_INTERPRET="1")
    assert ended.returncode == 0, ended.stderr
    assert "compared" in ended.stdout


def test_without_the_interpreter_the_fallback_runs() -> None:
    code = "import optimized, torch; print(optimized.activations.why_not_triton(torch.ones(2, 3)))"
    ended = python("-c", code, TRITON_INTERPRET="0")
    assert "the operands are on the CPU and TRITON_INTERPRET is not 1" in ended.stdout, ended.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selective_checkpointing_may_keep_the_products_of_a_block(dtype: torch.dtype) -> None:
    kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
    draw = torch.Generator().manual_seed(1)

    def projection() -> list[Any]:
        shapes = (4, 4), (4,), (2, 4), (4, 2)
        weight, bias, lora_A, lora_B = (torch.randn(s, generator=draw).to(dtype) for s in shapes)
        return [weight, bias, lora_A.requires_grad_(), lora_B.requires_grad_(), 0.5]

    x = torch.randn(3, 4, generator=draw).to(dtype)
    for function in (optimized.lora_qkv, optimized.lora_mlp):
        projections = [projection() for _ in range(3)]
        grads = []
        for options in ({}, {"context_fn": lambda: create_selective_checkpoint_contexts(kept)}):
            y = checkpoint(function, x, *projections, use_reentrant=False, **options)
            sum(t.sum() for t in (y if isinstance(y, tuple) else (y,))).backward()
            grads.append([p[2].grad for p in projections])
            for p in projections:
                p[2].grad = p[3].grad = None
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
