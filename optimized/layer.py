"""The LoRA layer of the reference, computed by the fused node or by Triton kernels."""

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
from optimized.dispatch.fused_node import why_not_fused
from optimized.dispatch.routes import why_not_kernels, why_not_masking_kernels
from optimized.dispatch.triton_kernels import why_not_triton
from optimized.dora import dora_linear
from optimized.dropout import CountedDropout
from optimized.linear import fused_linear
from optimized.matrices import autocast_dtype
from optimized.nodes.adapter import LoRATritonFunction
from optimized.nodes.triton_layer import TritonLoRALinear
from optimized.packed_layer import packed_output
from reference.linear import check_operands, drop


class LinearLoRA(reference.LinearLoRA):
    """`reference.LinearLoRA` as one autograd node: ``y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ``.

    Besides x and the parameters, backward needs x Aᵀ and one mask bit for each element under dropout. They are saved,
    or with use_memory_efficient_lora computed again.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As in the reference."""
        # Direct look-ups, because nn.Module.__getattr__ takes half a microsecond for each name.
        parameters: dict[str, Any] = self._parameters
        if self._buffers["unmerged_weight"] is not None:
            return self.base_product(x)
        if self.has_packed_base:
            packed = packed_output(self, x)
            return super().forward(x) if packed is None else packed
        weight, bias, m = parameters.get("weight"), parameters["bias"], parameters["lora_magnitude"]
        if weight is None or self.fan_in_fan_out:  # a computed weight, or [K, N]
            weight = self.base_weight
        modules: dict[str, Any] = self._modules
        A, B = modules["lora_A"]._parameters["weight"], modules["lora_B"]._parameters["weight"]
        if m is not None:
            if self.base_is_elsewhere:
                return super().forward(x)
            dropout: Any = {"dropout": self.dropout_p, "dropout_position": self.dropout_position}
            return dora_linear(x, weight, bias, A, B, self.scale, m, training=self.training, **dropout)
        rate = self.dropout_p if self.training else 0.0
        how = self.scale, rate, self.dropout_position, bool(self.use_memory_efficient_lora)
        if self.base_is_elsewhere:
            base = self.base_product(x)
            return base + fused_linear(x, None, None, A, B, *how).to(base.dtype)
        return fused_linear(x, weight, bias, A, B, *how)

    @property
    def base_is_elsewhere(self) -> bool:
        """As in the reference."""
        return self.has_own_forward or self._modules.get("base_layer") is not None

    interprets_kernels = False  # whether a CPU may interpret the kernels of a packed base
    has_own_forward = False  # whether a patched subclass of nn.Linear has one; set once per class

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        derived: Any = cls
        cls.has_own_forward = super(reference.LinearLoRA, derived).forward is not nn.Linear.forward  # type: ignore[comparison-overlap]


class TritonLinearLoRA(LinearLoRA, reference.TritonLinearLoRA):
    """`LinearLoRA` on Triton kernels; PyTorch computes the large products unless one kernel includes the update.

    If all operands have one dtype, the kernels compute the dropout mask themselves, and only x Aᵀ is saved.

    If ``why_not_triton(x, lora_A.weight, lora_B.weight)`` or `why_not_kernels` gives a reason, and with DoRA, the layer
    computes as `LinearLoRA` does.

    Attributes:
        routes: routes of `optimized.dispatch.routes` to take whenever possible, whatever their expected cost; used if
            all operands have one dtype.
    """

    routes: Collection[str] = ()
    interprets_kernels = True

    def forward(self, x: Tensor) -> Tensor:
        """As in the reference."""
        elsewhere = self.merged or self.has_packed_base or self.base_is_elsewhere or self.lora_magnitude is not None
        A, B, bias = self.lora_A.weight, self.lora_B.weight, self.bias
        if elsewhere or why_not_triton(x, A, B) is not None:
            return super().forward(x)
        weight = self.base_weight
        check_operands(x, weight, bias, A, B)
        rate = self.dropout_p if self.training else 0.0
        one_node = rate < 1.0 and x.dtype == A.dtype == weight.dtype and not _is_transformed(x, weight, A, B)
        # torch.compile cannot trace the rule, which looks at addresses and reads a table
        by_rule = not self.routes and not torch.compiler.is_compiling()
        if by_rule:
            masking = one_node and rate > 0.0
            rank = A.shape[0]
            if (why_not_masking_kernels(x, rank) if masking else why_not_kernels(x, weight, rank)) is not None:
                return super().forward(x)
        if one_node:
            dropout = CountedDropout.seeded(rate, self.dropout_position) if rate else CountedDropout(0.0)
            how = dropout, bool(self.use_memory_efficient_lora), self.routes
            return TritonLoRALinear.apply(x, weight, bias, A, B, self.scale, *how)  # type: ignore[no-any-return,no-untyped-call]
        pre, post = (rate, 0.0) if self.dropout_position == "pre" else (0.0, rate)
        base = F.linear(x, weight, bias)
        update: Tensor = LoRATritonFunction.apply(drop(x, pre, True), A, B, self.scale, base.dtype)  # type: ignore[no-untyped-call]
        return base + drop(update, post, True)


def _is_transformed(x: Tensor, *parameters: Tensor) -> bool:
    """Whether autocast, torch.compile or torch.func need the operations of the formula."""
    return autocast_dtype(x) is not None or why_not_fused(x, *parameters) is not None
