"""Right hybrid modules, split into small methods; a known-bad twin overrides one of them."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference


class Right:
    """A target for the group `hybrid`; an instance has the group's public names."""

    LINEAR_LAYERS: Any = reference.LINEAR_LAYERS
    LinearLoRA = reference.LinearLoRA
    LoraTraining = reference.LoraTraining

    # the two products

    def forward_product(self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        return F.linear(x, weight.t() if transposed else weight, bias)

    def backward_product(self, g: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        return g @ (weight.t() if transposed else weight)

    def ForwardModuleLinear(self, weight: Tensor, bias: Tensor | None = None, weight_transposed: bool = False) -> Any:
        return Product(self, "forward_product", weight, (bias,), weight_transposed)

    def BackwardModuleLinear(self, weight: Tensor, weight_transposed: bool = False) -> Any:
        return Product(self, "backward_product", weight, (), weight_transposed)

    # routing

    @property
    def ForwardBackwardModule(self) -> Any:
        return SimpleNamespace(apply=self.route)

    def route(self, x: Tensor, there: Any, back: Any) -> Tensor:
        return Routing.apply(x, there, back, self)

    def run_forward(self, ctx: Any, x: Tensor, there: Any) -> Tensor:
        ctx.autocast = torch.is_autocast_enabled("cpu")
        y = there(x)
        return y.clone() if y._is_view() else y

    def run_backward(self, ctx: Any, g: Tensor) -> Tensor | None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ctx.autocast):
            d_x = ctx.back(g)
        self.check_graph(g, d_x)
        return d_x.to(ctx.dtype)

    def check_graph(self, g: Tensor, d_x: Tensor) -> None:
        if torch.is_grad_enabled() and g.requires_grad and not d_x.requires_grad:
            raise RuntimeError("no double backward through this module")

    # the layer

    def CustomLinear(self, weight: Tensor, bias: Tensor | None = None, weight_transposed: bool = False) -> Any:
        return Layer(self, weight, bias, weight_transposed)

    def layer_forward(self, layer: Any, x: Tensor) -> Tensor:
        return self.route(x, layer.forward_module, layer.backward_module)

    # names

    def is_adapter(self, name: str, module: nn.Module) -> bool:
        names = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_dropout")
        components = name.split(".")
        leaf = next(module.children(), None) is None
        return not {*names, "lora_magnitude", "lora_magnitude_vector"}.isdisjoint(components) or (
            leaf and components[-1].startswith("lora_")
        )

    def is_head(self, name: str) -> bool:
        return "lm_head" in name.split(".")

    def is_linear(self, module: nn.Module) -> bool:
        return type(module) is nn.Linear or type(module).__name__ == "Conv1D"

    def names_of(self, name: str, module: nn.Module, embeddings: bool) -> list[str]:
        if hasattr(module, "forward_module") and hasattr(module, "backward_module"):
            return [f"{name}.forward_module", f"{name}.backward_module"]
        wanted = self.is_linear(module) or (embeddings and isinstance(module, nn.Embedding))
        return [name] if wanted else []

    def get_remote_names(self, model: nn.Module, include_embedding_layers: bool = False) -> list[str]:
        names = []
        for name, module in model.named_modules():
            if not self.is_adapter(name, module) and (include_embedding_layers or not self.is_head(name)):
                names += self.names_of(name, module, include_embedding_layers)
        self.warn_if_none(names)
        return names

    def warn_if_none(self, names: list[str]) -> None:
        if not names:
            warnings.warn("nothing runs remotely", stacklevel=3)


class Product(nn.Module):
    """A product module; its tensors belong to the layer and are not registered here."""

    def __init__(self, rules: Any, rule: str, weight: Tensor, others: tuple[Any, ...], transposed: bool) -> None:
        super().__init__()
        self.rules, self.rule, self.transposed = rules, rule, transposed
        self.tensors = (weight, *others)

    def forward(self, t: Tensor) -> Any:
        return getattr(self.rules, self.rule)(t, *self.tensors, self.transposed)


class Routing(torch.autograd.Function):
    """An autograd function whose forward and backward call methods of a `Right` or of a twin."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Any, back: Any, rules: Any) -> Any:
        ctx.back, ctx.rules, ctx.dtype = back, rules, x.dtype
        held = (*back.parameters(), *(t for t in getattr(back, "tensors", ()) if t is not None))
        ctx.save_for_backward(*held)
        return rules.run_forward(ctx, x, there)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        _ = ctx.saved_tensors
        return ctx.rules.run_backward(ctx, g), None, None, None


class Layer(nn.Module):
    """A frozen linear layer made of two product modules."""

    def __init__(self, rules: Any, weight: Any, bias: Any, transposed: bool) -> None:
        super().__init__()
        self.rules = rules
        self.weight, self.bias = weight, bias
        self.in_features, self.out_features = weight.shape if transposed else weight.shape[::-1]
        self.forward_module: nn.Module = rules.ForwardModuleLinear(weight, bias, transposed)
        self.backward_module: nn.Module = rules.BackwardModuleLinear(weight, transposed)

    def forward(self, x: Tensor) -> Any:
        return self.rules.layer_forward(self, x)
