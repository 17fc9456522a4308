"""A LoRA layer as a module: a frozen linear layer and its adapter, which can be merged into the weight."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base_layer import (
    check_adaptable,
    check_mergeable,
    computes_weight,
    features,
    freeze,
    has_own_forward,
    is_conv1d,
    unpacked_weight,
    weight_matrix,
)
from .config import (
    PeftConfig,
    check_alpha,
    check_dim,
    check_dropout,
    check_flag,
    check_init_method,
    parse_dtype,
)
from .dora import dora_linear, dora_output, dora_weight, row_norm
from .hybrid import CustomLinear
from .linear import lora_linear, widen, without_autocast
from .packed_base import adapter_dtype, packed_source
from .packed_layer import packed_base_of, packed_output
from .sharded import placed_as, shard_of


class LinearLoRA(nn.Linear):
    """A frozen nn.Linear with an adapter: ``y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ``, see `lora_linear`.

    The layer shares the weight and bias Parameters of orig_linear and freezes them. It takes over device, dtype
    and training flag. On the meta device, call ``to_empty`` and `init_lora_weights` afterwards.
    ``layer.bias.requires_grad_(True)`` makes the bias trainable.

    Args:
        orig_linear: an nn.Linear without an adapter, or a Conv1D of transformers, whose weight is [K, N];
            `patch_linear_module` also takes subclasses with their own forward.
        dim, alpha, dropout, dropout_position, lora_dtype, use_rslora, use_dora: as in `PeftConfig`.
        lora_A_init_method: "xavier", "uniform" or "kaiming".
        use_memory_efficient_lora: has no effect here.
    Attributes:
        weight [N, K], bias [N] or None, lora_A.weight [r, K], lora_B.weight [N, r], lora_magnitude [N] or
            None.
        fan_in_fan_out: whether weight is [K, N] instead, as in a Conv1D.
        dim, alpha, dropout_position, use_dora, use_rslora, use_memory_efficient_lora: as given.
        dropout_p: the dropout probability, a float; dropout acts while ``training`` is set.
        scale: ``alpha/dim``, or ``alpha/√dim`` with use_rslora.
        merged: whether `weight` includes the update.
        base_layer: absent, or the module that computes ``x Wᵀ + b`` instead of this layer (see
            `replace_layers_with_custom`).
    Raises:
        ValueError: for options out of range, and for a module that is not an nn.Linear or already has an adapter.
    Source: NeMo Automodel `LinearLoRA`; Hu et al., LoRA (2021); with use_dora Liu et al., DoRA (2024).
    """

    dim: int
    alpha: int | float
    scale: float
    dropout_p: float
    dropout_position: str
    use_dora: bool
    lora_A: nn.Linear
    lora_B: nn.Linear
    lora_magnitude: nn.Parameter | None
    unmerged_weight: Tensor | None
    fan_in_fan_out = False
    has_packed_base = False  # whether `weight` is packed, see `packed_base`
    original_class: type[nn.Module] = nn.Linear  # the class before patching, where it has its own methods

    def __init__(
        self,
        orig_linear: nn.Linear,
        dim: int = PeftConfig.dim,
        alpha: int | float = PeftConfig.alpha,
        dropout: float = PeftConfig.dropout,
        dropout_position: str = PeftConfig.dropout_position,
        lora_A_init_method: str = PeftConfig.lora_A_init,
        lora_dtype: torch.dtype | str | None = PeftConfig.lora_dtype,
        *,
        use_rslora: bool = PeftConfig.use_rslora,
        use_memory_efficient_lora: bool = PeftConfig.use_memory_efficient_lora,
        use_dora: bool = PeftConfig.use_dora,
    ) -> None:
        check_adaptable(orig_linear, use_dora, parse_dtype(lora_dtype))
        if has_own_forward(orig_linear) or computes_weight(orig_linear):
            has = "has its own forward" if has_own_forward(orig_linear) else "computes its weight"
            raise ValueError(
                f"{type(orig_linear).__name__} {has}, which {type(self).__name__} would not call: "
                f"use patch_linear_module"
            )
        nn.Module.__init__(self)  # nn.Linear.__init__ would allocate and initialise a second weight
        self.in_features, self.out_features = features(orig_linear)
        self.fan_in_fan_out = is_conv1d(orig_linear)
        self.weight = orig_linear.weight
        self.register_parameter("bias", orig_linear.bias)  # also when None, as nn.Linear does
        self.train(orig_linear.training)
        self._init_adapter(
            self,
            dim,
            alpha,
            dropout,
            dropout_position,
            lora_A_init_method,
            lora_dtype,
            use_rslora=use_rslora,
            use_memory_efficient_lora=use_memory_efficient_lora,
            use_dora=use_dora,
        )

    @staticmethod
    def _init_adapter(
        obj: Any,
        dim: int = PeftConfig.dim,
        alpha: int | float = PeftConfig.alpha,
        dropout: float = PeftConfig.dropout,
        dropout_position: str = PeftConfig.dropout_position,
        lora_A_init_method: str = PeftConfig.lora_A_init,
        lora_dtype: torch.dtype | str | None = PeftConfig.lora_dtype,
        *,
        use_rslora: bool = PeftConfig.use_rslora,
        use_memory_efficient_lora: bool = PeftConfig.use_memory_efficient_lora,
        use_dora: bool = PeftConfig.use_dora,
    ) -> None:
        """Freeze an nn.Linear and attach an adapter to it; the arguments are those of the class.

        If an argument is refused, the module is unchanged.
        """
        check_dim(dim)
        check_alpha(alpha)
        check_dropout(dropout, dropout_position)
        check_init_method("lora_A_init_method", lora_A_init_method)
        flags = {
            "use_rslora": use_rslora,
            "use_memory_efficient_lora": use_memory_efficient_lora,
            "use_dora": use_dora,
        }
        for key, flag in flags.items():
            check_flag(key, flag)
        if is_conv1d(obj):
            (obj.in_features, obj.out_features), obj.fan_in_fan_out = features(obj), True
        obj.has_packed_base = packed_source(obj) is not None
        weight = unpacked_weight(obj)
        dtype = adapter_dtype(obj) if obj.has_packed_base else weight.dtype
        placed: dict[str, Any] = {"device": weight.device, "dtype": parse_dtype(lora_dtype) or dtype}
        # Computed before anything is attached, because this refuses a zero row.
        magnitude = nn.Parameter(row_norm(weight).to(placed["dtype"])) if use_dora else None
        freeze(obj)
        obj.lora_A = empty_linear(obj.in_features, dim, **placed).train(obj.training)
        obj.lora_B = empty_linear(dim, obj.out_features, **placed).train(obj.training)
        obj.register_parameter("lora_magnitude", magnitude)
        obj.register_buffer("unmerged_weight", None, persistent=False)
        obj.dim, obj.alpha = dim, alpha
        obj.scale = alpha / (math.sqrt(dim) if use_rslora else dim)
        obj.dropout_p, obj.dropout_position = float(dropout), dropout_position
        for key, flag in flags.items():
            setattr(obj, key, flag)
        LinearLoRA.init_lora_weights(obj, lora_A_init_method)

    @torch.no_grad()
    def init_lora_weights(self, init_method: str) -> None:
        """Draw A again, set B = 0 and lora_magnitude = ‖W‖_row, in place: an optimiser may hold these tensors.

        Args:
            init_method: "xavier" is ``xavier_normal_``, "uniform" and "kaiming" are
                ``kaiming_uniform_(a=√5)``.
        Raises:
            ValueError: for another name.
        Source: NeMo Automodel; an older release filled A from U(0, 1), a defect.
        """
        check_init_method("init_method", init_method)
        LinearLoRA.unmerge(self)  # the merged update is not that of the new adapter
        if init_method == "xavier":
            nn.init.xavier_normal_(self.lora_A.weight)
        else:
            nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        if self.lora_magnitude is not None:
            self.lora_magnitude.copy_(row_norm(unpacked_weight(self)))

    def forward(self, x: Tensor) -> Tensor:
        """``x Wᵀ + b + scale · (x Aᵀ) Bᵀ``; a merged layer computes ``x Wᵀ + b``, because W includes the update.

        Args:
            x: [*, K].
        Returns:
            [*, N], in the dtype of the base product.
        Raises:
            ValueError: as in `lora_linear`.
        """
        if self.merged:
            return self.base_product(x)
        packed = packed_base_of(self)
        if packed is not None:
            return packed_output(self, packed, x)
        bias, A, B, m = self.bias, self.lora_A.weight, self.lora_B.weight, self.lora_magnitude
        dropout: Any = {"dropout": self.dropout_p, "dropout_position": self.dropout_position}
        dropout["training"] = self.training
        if not self.base_is_elsewhere:
            if m is None:
                return lora_linear(x, self.base_weight, bias, A, B, self.scale, **dropout)
            return dora_linear(x, self.base_weight, bias, A, B, self.scale, m, **dropout)
        if m is None:
            base = self.base_product(x)
            return base + lora_linear(x, None, None, A, B, self.scale, **dropout).to(base.dtype)

        def product(t: Tensor) -> Tensor:
            y = self.base_product(t.to(x.dtype))
            return y if bias is None else y - bias

        return dora_output(product, x, self.base_weight, bias, A, B, self.scale, m, **dropout)

    def base_product(self, x: Tensor) -> Tensor:
        """The product of the layer without its adapter: ``x Wᵀ + b``; base_layer computes it if there is one."""
        base_layer = getattr(self, "base_layer", None)
        if base_layer is None:
            return F.linear(x, self.base_weight, self.bias) if self.fan_in_fan_out else super().forward(x)
        if isinstance(base_layer, CustomLinear):
            base_layer.tie(self.weight, self.bias)
        return base_layer(x)  # type: ignore[no-any-return]

    @property
    def base_weight(self) -> Tensor:
        """W [N, K]: `weight`, a view of it, or the numbers that a packed weight stands for."""
        return unpacked_weight(self)

    @property
    def base_is_elsewhere(self) -> bool:
        """Whether base_layer, or the own forward of a patched subclass, computes the base product."""
        own_forward = super().forward.__func__ is not nn.Linear.forward  # type: ignore[attr-defined]
        return own_forward or getattr(self, "base_layer", None) is not None

    @property
    def merged(self) -> bool:
        """Whether `weight` includes the update."""
        return self.unmerged_weight is not None

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the weight in place: ``W ← W + scale · B A``, rounded once.

        A merged layer stays as it is. The weight stays the same Parameter, so a layer that shares it sees the update
        too; `merge_adapters` refuses that. The adapter and its scale must not change until `unmerge`. With DoRA,
        ``W ← m′ ⊙ (W + scale · B A)``.

        Raises:
            ValueError: naming the class, if the output is not ``x Wᵀ + b`` of the Parameter `weight`: for a patched
                subclass with its own forward, and for a weight that is computed, as by weight_norm.
        """
        if self.merged:
            return
        check_mergeable(self)
        with without_autocast(self.weight):
            A, B = widen(self.lora_A.weight), widen(self.lora_B.weight)
            weight = widen(self.base_weight)
            if self.lora_magnitude is not None:
                merged = dora_weight(weight, A, B, self.scale, self.lora_magnitude)
            else:
                merged = weight + B @ A * self.scale
        # Keep the original: W + ΔW - ΔW would differ by rounding, and by later changes of the adapter.
        self.unmerged_weight = self.weight.detach().clone()
        self.weight.copy_(placed_as(weight_matrix(merged, self.fan_in_fan_out), self.weight))

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the weight from before `merge`, bit for bit; a layer that is not merged stays as it is."""
        if self.unmerged_weight is not None:
            self.weight.copy_(shard_of(self.unmerged_weight, self.weight))  # it may be sharded since the merge
            self.unmerged_weight = None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Write the unmerged layer, so that the checkpoint loads into any layer."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.unmerged_weight is not None:
            destination[prefix + "weight"] = self.unmerged_weight

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Unmerge first, because a checkpoint holds the unmerged layer."""
        self.unmerge()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dim={self.dim}, scale={self.scale}"


class TritonLinearLoRA(LinearLoRA):
    """A layer that uses Triton kernels in `optimized`; here it computes the same as `LinearLoRA`.

    Source: NeMo Automodel `TritonLinearLoRA`.
    """


def empty_linear(in_features: int, out_features: int, *, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """An nn.Linear without bias and with an uninitialised weight, so that no random number is drawn."""
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.in_features, linear.out_features = in_features, out_features
    linear.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
    linear.register_parameter("bias", None)
    return linear
