"""A frozen linear layer with one module for the forward product and one for the backward; both may run remotely."""

import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stored_weight import described, is_packed


class _Conv1DIfImported(type):
    """Make isinstance recognise transformers' Conv1D without importing transformers.

    A Conv1D exists only after its module is imported, so it is enough to look in sys.modules at each call.
    Importing transformers here would cost every user seconds.
    """

    def __instancecheck__(cls, instance: object) -> bool:
        module = sys.modules.get("transformers.pytorch_utils")
        return module is not None and isinstance(instance, module.Conv1D)


class Conv1D(metaclass=_Conv1DIfImported):
    """A stand-in for transformers' Conv1D in isinstance: a linear layer with a weight [in, out]."""


LINEAR_LAYERS: tuple[type, ...] = (nn.Linear, Conv1D)
"""The classes of linear layers, for isinstance: nn.Linear and transformers' Conv1D."""

LORA_NAMES = frozenset(
    {
        "lora_A",
        "lora_B",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_dropout",
        "lora_magnitude",
        "lora_magnitude_vector",
    }
)


class _FrozenOperands(nn.Module):
    """A module that holds a frozen weight, and possibly a bias.

    Both are registered, so that `to` moves them. If a parent registers the same tensors, only the parent reads and
    writes them in a state_dict, so that the state_dict holds each tensor once.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    owned_by_parent = False

    def __init__(self, weight: Tensor, bias: Tensor | None, weight_transposed: bool) -> None:
        super().__init__()
        if is_packed(weight):
            raise ValueError(
                f"a {type(self).__name__} of a weight {described(weight)}: expected a floating point weight with two "
                f"dimensions, which is not packed"
            )
        self.weight_transposed = weight_transposed
        self.weight = _parameter(weight)
        self.register_parameter("bias", None if bias is None else _parameter(bias))
        self.in_features, self.out_features = self.weight.shape if weight_transposed else self.weight.shape[::-1]

    def tie(self, weight: Any, bias: Any) -> None:
        """Take over the parent's tensors again, because to_empty and load_state_dict(assign=True) replace them."""
        if self.weight is not weight:
            self.weight = weight
        if self.bias is not None and self.bias is not bias:
            self.bias = bias

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not self.owned_by_parent:
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if not self.owned_by_parent:
            super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _parameter(t: Tensor) -> nn.Parameter:
    return t if isinstance(t, nn.Parameter) else nn.Parameter(t.detach(), requires_grad=False)


class ForwardModuleLinear(_FrozenOperands):
    """The forward product of a linear layer: ``y = x Wᵀ + b``, or ``x W + b`` with weight_transposed.

    Args:
        weight: [N, K]; [K, N] with weight_transposed. Shared, not copied.
        bias: [N] or None.
    Raises:
        ValueError: for a weight that is packed (see `is_packed`).
    Source: Concrete ML `ForwardModuleLinear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, weight_transposed: bool = False) -> None:
        super().__init__(weight, bias, weight_transposed)

    def forward(self, input_tensor: Tensor) -> Tensor:
        """``x Wᵀ + b``: [*, K] → [*, N].

        Raises:
            ValueError: if x does not have K features.
        """
        _check_features("x", input_tensor, self.in_features, self.weight)
        return F.linear(input_tensor, self.weight.t() if self.weight_transposed else self.weight, self.bias)


class BackwardModuleLinear(_FrozenOperands):
    """The backward product of a linear layer: ``dX = g W``, or ``g Wᵀ`` with weight_transposed.

    Args:
        weight: [N, K]; [K, N] with weight_transposed. Shared, not copied.
    Raises:
        ValueError: for a weight that is packed (see `is_packed`).
    Source: Concrete ML `BackwardModuleLinear`.
    """

    def __init__(self, weight: Tensor, weight_transposed: bool = False) -> None:
        super().__init__(weight, None, weight_transposed)

    def forward(self, grad_output: Tensor) -> Tensor:
        """``g W``: [*, N] → [*, K].

        Raises:
            ValueError: if g does not have N features.
        """
        _check_features("g", grad_output, self.out_features, self.weight)
        return grad_output @ (self.weight.t() if self.weight_transposed else self.weight)


def _check_features(name: str, t: Tensor, features: int, weight: Tensor) -> None:
    if t.ndim == 0 or t.shape[-1] != features:
        raise ValueError(
            f"{name} is {list(t.shape)} but weight is {list(weight.shape)}: its last dimension must be {features}"
        )


class ForwardBackwardModule(torch.autograd.Function):
    """``y = forward_module(x)`` with ``dX = backward_module(g)``: two modules replace autograd.

    ``ForwardBackwardModule.apply(x, forward_module, backward_module)``. Only x gets a gradient.
    Source: Concrete ML `ForwardBackwardModule`.
    """

    @staticmethod
    def forward(ctx: Any, input_tensor: Tensor, forward_module: nn.Module, backward_module: nn.Module) -> Tensor:
        """Run the forward module on x; x is not modified."""
        ctx.backward_module = backward_module
        ctx.input_dtype = input_tensor.dtype
        ctx.autocast = _autocast_state(input_tensor)
        # Saved so that autograd refuses a change of these parameters between forward and backward.
        ctx.save_for_backward(*backward_module.parameters())
        y: Tensor = forward_module(input_tensor)
        # The consumer may modify y in place, which autograd forbids for a view made in this function.
        return y.clone() if y._is_view() else y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None, None]:
        """Run the backward module on g, under the autocast state of the forward; dX has x's dtype.

        Raises:
            RuntimeError: if the backward module's parameters have changed since forward, as in eager mode; for a
                second derivative, if the backward module returns a gradient without a graph.
        """
        _ = ctx.saved_tensors  # raises if one was modified in place
        if not ctx.needs_input_grad[0]:
            return None, None, None
        with torch.autocast(**ctx.autocast) if ctx.autocast else nullcontext():
            grad_input = ctx.backward_module(grad_output)
        if torch.is_grad_enabled() and grad_output.requires_grad and not grad_input.requires_grad:
            raise RuntimeError(
                f"{type(ctx.backward_module).__name__} returned a gradient without a graph: "
                f"it cannot be differentiated a second time"
            )
        return grad_input.to(ctx.input_dtype), None, None


def _autocast_state(t: Tensor) -> dict[str, Any]:
    kind = t.device.type
    if not torch.amp.is_autocast_available(kind):
        return {}
    return {
        "device_type": kind,
        "dtype": torch.get_autocast_dtype(kind),
        "enabled": torch.is_autocast_enabled(kind),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }


class CustomLinear(_FrozenOperands):
    """A frozen linear layer, ``y = x Wᵀ + b``, whose two product modules can be replaced by remote ones.

    W and b get no gradient, even if they are marked trainable. The state_dict has the names and tensors of the
    replaced layer: ``weight`` and ``bias``.

    Args:
        weight: [N, K]; [K, N] with weight_transposed. Shared, not copied.
        bias: [N] or None.
    Attributes:
        weight, bias, in_features, out_features: as in the replaced layer.
        forward_module: a `ForwardModuleLinear`.   backward_module: a `BackwardModuleLinear`.
    Raises:
        ValueError: for a weight that is packed (see `is_packed`).
    Source: Concrete ML `CustomLinear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, weight_transposed: bool = False) -> None:
        super().__init__(weight, bias, weight_transposed)
        self.forward_module: nn.Module = ForwardModuleLinear(self.weight, self.bias, weight_transposed)
        self.backward_module: nn.Module = BackwardModuleLinear(self.weight, weight_transposed)
        for module in (self.forward_module, self.backward_module):
            module.owned_by_parent = True

    def forward(self, input_tensor: Tensor) -> Tensor:
        """``x Wᵀ + b``: [*, K] → [*, N], through `ForwardBackwardModule`."""
        for module in (self.forward_module, self.backward_module):
            product = getattr(module, "private_module", module)  # the float module of a remote one
            if isinstance(product, _FrozenOperands):
                product.tie(self.weight, self.bias)
        return ForwardBackwardModule.apply(  # type: ignore[no-any-return,no-untyped-call]
            input_tensor, self.forward_module, self.backward_module
        )


def is_lora_module(name: str, module: nn.Module) -> bool:
    """Whether a module is part of an adapter, by its dotted name.

    Its name has a component in `LORA_NAMES`, or it is a leaf whose own name starts with ``lora_``. A layer called
    ``explorator``, or below a parent called ``lora_model``, is not part of an adapter.
    """
    *_, own = components = name.split(".")
    is_leaf = next(module.children(), None) is None
    return not LORA_NAMES.isdisjoint(components) or (is_leaf and own.startswith("lora_"))


def is_frozen_product(name: str, module: nn.Module) -> bool:
    """Whether a module is a linear layer that can run remotely: nn.Linear or Conv1D, outside adapters.

    A subclass of nn.Linear may compute something else, for example `LinearLoRA`.
    """
    return (type(module) is nn.Linear or isinstance(module, Conv1D)) and not is_lora_module(name, module)


def get_remote_names(model: nn.Module, include_embedding_layers: bool = False) -> list[str]:
    """The names of the modules that run remotely, in registration order.

    A `CustomLinear` at path gives ``path.forward_module`` and ``path.backward_module``; any other linear layer (see
    `is_frozen_product`) gives its own name. Adapters never run remotely. Embeddings and the output head (names with
    a component ``lm_head``) run remotely only on request. A module with two names is named once.

    Args:
        model: any model; its linear layers may be `CustomLinear`s or not.
        include_embedding_layers: name nn.Embedding and ``lm_head`` too.
    Warns:
        UserWarning: if no module can run remotely.
    Source: Concrete ML `get_remote_names`, which looks for "lora" and "lm_head" anywhere in a name.
    """
    names: list[str] = []
    for name, module in model.named_modules():
        if is_lora_module(name, module) or ("lm_head" in name.split(".") and not include_embedding_layers):
            continue
        if isinstance(module, CustomLinear):
            names += [f"{name}.forward_module", f"{name}.backward_module"]
        elif is_frozen_product(name, module) or (include_embedding_layers and isinstance(module, nn.Embedding)):
            names.append(name)
    if not names:
        warnings.warn(f"{type(model).__name__} has no module to run remotely", stacklevel=2)
    return names
