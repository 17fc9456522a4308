"""A right `clip_grad_norm_`, split into small methods; a known-bad twin overrides one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Right:
    """A target for the group `gradnorm`; an instance has `clip_grad_norm_` and `grad_norm`."""

    def chosen(self, parameters: Any) -> list[Any]:
        """Return each parameter that has a non-empty gradient, once."""
        once = {id(p): p for p in parameters}
        return [p for p in once.values() if p.grad is not None and p.grad.numel()]

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the global L2 norm of the gradients in float64."""
        wide = [g.detach().double() for g in gradients]
        largest = max((g.abs().max() for g in wide), default=torch.zeros(()).double())
        if largest == 0 or not torch.isfinite(torch.stack([g.sum() for g in wide])).all():
            return sum((g.abs().sum() for g in wide), largest)
        return largest * torch.stack([((g / largest) ** 2).sum() for g in wide]).sum().sqrt()

    def returned(self, norm: Tensor, gradients: list[Tensor]) -> Any:
        """Return the norm in the dtype that the caller gets: float64 for float64 gradients, else float32."""
        return norm.to(torch.float64 if torch.float64 in {g.dtype for g in gradients} else torch.float32)

    def factor(self, norm: Tensor, max_norm: float) -> Tensor:
        """Return the clip factor `min(1, max_norm / (norm + 1e-6))`."""
        return (max_norm / (norm + 1e-6)).clamp(max=1.0)

    def scale(self, gradient: Tensor, factor: Tensor) -> Tensor:
        """Return the gradient times the factor, rounded once."""
        return (gradient.double() * factor).to(gradient.dtype)

    def store(self, parameter: Any, gradient: Tensor) -> None:
        """Copy the clipped gradient into the parameter's gradient."""
        parameter.grad.copy_(gradient)

    def refuse(self, norm: Tensor, _parameters: list[Any]) -> None:
        """Raise if the norm is not finite, as `error_if_nonfinite` asks."""
        if not torch.isfinite(norm):
            raise RuntimeError(f"the norm is {norm.item()}")

    def grad_norm(self, parameters: Any) -> Any:
        gradients = [p.grad for p in self.chosen(parameters)]
        return self.returned(self.norm(gradients), gradients)

    def clip_grad_norm_(self, parameters: Any, max_norm: float, error_if_nonfinite: bool = False) -> Any:
        chosen = self.chosen(parameters)
        gradients = [p.grad for p in chosen]
        norm = self.norm(gradients)
        if error_if_nonfinite:
            self.refuse(norm, chosen)
        self.clip(chosen, norm, max_norm)
        return self.returned(norm, gradients)

    def clip(self, chosen: list[Any], norm: Tensor, max_norm: float) -> None:
        """Scale the gradients if the norm exceeds max_norm."""
        factor = self.factor(norm, max_norm)
        if factor != 1:
            for parameter in chosen:
                self.store(parameter, self.scale(parameter.grad, factor))
