"""Zero, negated and doubled gradients fail in every group that checks gradients, in every dtype."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import reference
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import MUST, load_all
from conformance.target.target import Target

FACTORS = {"zero": 0.0, "negated": -1.0, "doubled": 2.0}
# The clauses of each group that judge gradients.
GRADIENTS = {
    "linear": ("LIN-BWD-DX", "LIN-BWD-DA", "LIN-BWD-DB"),
    "layer": ("LAY-BWD-DX", "LAY-BWD-DA", "LAY-BWD-DB"),
    "merge": ("MRG-UNMERGE",),
    "dora": ("DORA-BWD-DX", "DORA-BWD-DA", "DORA-BWD-DB", "DORA-BWD-DM"),
    "fused": ("FUS-BWD-DX", "FUS-BWD-DA", "FUS-BWD-DB"),
    "model": ("MOD-BWD",),
    "gradnorm": ("GRN-CLIP",),
    "training": ("TRN-BACKWARD",),
    "hybrid": ("HYB-DX",),
    "fhe": ("FHE-DISABLE-DX",),
}


class Weighed(torch.autograd.Function):
    """The identity with its gradient multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.factor, None


def impostor(factor: float) -> SimpleNamespace:
    """The reference with every gradient multiplied by the factor."""
    triton = ("LoRATritonFunction", "TritonLinearLoRA")
    names = {name: getattr(reference, name) for name in reference.__all__ if name not in triton}
    return SimpleNamespace(**{**names, **functions(factor), **layers(factor), **training(factor)})


def weigher(factor: float) -> Callable[[Any], Any]:
    """A function that returns floating-point tensors unchanged and multiplies their gradients by the factor."""

    def weighed(x: Any) -> Any:
        return Weighed.apply(x, factor) if isinstance(x, Tensor) and x.is_floating_point() else x

    return weighed


def functions(factor: float) -> dict[str, Any]:
    """`lora_linear` and the fused blocks, with multiplied gradients."""
    weighed = weigher(factor)

    def lora_linear(x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, *args: Any, **kw: Any) -> Tensor:
        return reference.lora_linear(weighed(x), weight, bias, weighed(lora_A), weighed(lora_B), *args, **kw)

    def block(name: str) -> Any:
        def call(x: Tensor, *projections: Any) -> Any:
            return getattr(reference, name)(weighed(x), *(p and through(p) for p in projections))

        def through(projection: Any) -> Any:
            return tuple(map(weighed, projection)) if isinstance(projection, tuple) else projection

        return call

    return {"lora_linear": lora_linear, "lora_qkv": block("lora_qkv"), "lora_mlp": block("lora_mlp")}


def layers(factor: float) -> dict[str, Any]:
    """`LinearLoRA`, patched layers and `CustomLinear`, with multiplied gradients."""
    weighed = weigher(factor)

    def hooked(layer: Any) -> Any:
        for name in ("lora_A", "lora_B"):
            getattr(layer, name).weight.register_hook(lambda g: g * factor)
        if layer.lora_magnitude is not None:
            layer.lora_magnitude.register_hook(lambda g: g * factor)
        return layer

    class LinearLoRA(reference.LinearLoRA):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            hooked(self)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(weighed(x))

    def patch_linear_module(*args: Any, **options: Any) -> Any:
        layer = hooked(reference.patch_linear_module(*args, **options))
        layer.register_forward_pre_hook(lambda _, inputs: (weighed(inputs[0]),))
        return layer

    class CustomLinear(reference.CustomLinear):
        def forward(self, input_tensor: Tensor) -> Tensor:
            return super().forward(weighed(input_tensor))

    return {"LinearLoRA": LinearLoRA, "patch_linear_module": patch_linear_module, "CustomLinear": CustomLinear}


def training(factor: float) -> dict[str, Any]:
    """`LoraTraining` and `clip_grad_norm_`, with multiplied gradients."""

    def weigh(parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    class LoraTraining(reference.LoraTraining):
        def _backward(self, loss: Tensor) -> None:
            super()._backward(loss)
            weigh(self.inference_model.parameters())

    def clip_grad_norm_(parameters: Any, max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        norm = reference.clip_grad_norm_(parameters, max_norm, error_if_nonfinite)
        weigh(parameters)
        return norm

    return {"LoraTraining": LoraTraining, "clip_grad_norm_": clip_grad_norm_}


def judged(group: str, dtype: str) -> list[str]:
    """The gradient clauses of a group that are judged in this dtype."""
    return [name for name in GRADIENTS[group] if dtype in load_all()[name].dtypes]


def failed(target: Target, group: str, dtype: str) -> set[str]:
    """The gradient clauses of a group that the target fails."""
    clauses, found = load_all(), set()
    profile = dataclasses.replace(PROFILES["quick"], shrinks=0)
    for name in judged(group, dtype):
        clause = clauses[name]
        assert clause.level == MUST
        for subject in target.subjects(clause):
            if Examination(clause, subject, dtype, profile).run().status == "fail":
                found.add(name)
    return found


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("group", GRADIENTS)
def test_a_wrong_gradient_fails(group: str, factor: float, dtype: str) -> None:
    clauses = judged(group, dtype)
    if not clauses:
        pytest.skip(f"no gradient of the group {group} is judged in {dtype}")
    assert failed(Target.of(impostor(factor), "impostor"), group, dtype) == set(clauses)


@pytest.mark.parametrize("group", GRADIENTS)
def test_the_same_wrapper_with_factor_one_passes(group: str) -> None:
    assert failed(Target.of(impostor(1.0), "right"), group, "float32") == set()
