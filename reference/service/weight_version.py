"""The check whether a weight or a bias has changed since its module was compiled."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..hybrid import BackwardModuleLinear

COMPARED = 1024  # sampled values of a weight that each call compares


@dataclass(frozen=True, eq=False)
class Version:
    """A weight or a bias, with properties that change with its values but not with its device.

    Autograd does not count writes through ``.data``, so some of the values are compared too.
    """

    tensor: Tensor | None
    count: int = 0
    dtype: torch.dtype | None = None
    some: Tensor | None = None

    @classmethod
    def of(cls, tensor: Tensor | None) -> "Version":
        if tensor is None:
            return cls(None)
        if tensor.is_meta:
            return cls(tensor, tensor._version, tensor.dtype)
        return cls(tensor, tensor._version, tensor.dtype, some_of(tensor.detach()).cpu())

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, with the number of writes since this version in place of autograd's count."""
        writes = 0 if self.tensor is None else self.tensor._version - self.count
        return {**vars(self), "count": writes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes of a copy or a pickle, whose tensor counts from another number."""
        tensor, writes = state["tensor"], state["count"]
        vars(self).update(state, count=0 if tensor is None else tensor._version - writes)

    def differs(self, now: "Version") -> bool:
        if self.tensor is not now.tensor or (self.count, self.dtype) != (now.count, now.dtype):
            return True
        if self.some is None or now.some is None:
            return self.some is not now.some
        return not torch.equal(self.some, now.some)


def some_of(t: Tensor) -> Tensor:
    """A copy of some elements, spread over rows and columns; of a small tensor, all elements."""
    if t.numel() <= COMPARED:
        return t.flatten().clone()
    flat = t.view(-1) if t.is_contiguous() else t.t().view(-1) if t.t().is_contiguous() else t.reshape(-1)
    number = torch.arange(COMPARED, device=t.device)
    within = number % (t.numel() // COMPARED)  # different columns in each row
    return flat[number * t.numel() // COMPARED + within]


def versions(module: Any) -> list[Version]:
    """The versions of the weight and bias of a product."""
    bias = None if isinstance(module, BackwardModuleLinear) else module.bias
    return [Version.of(module.weight), Version.of(bias)]
