"""A CPU with int8 dot products, for tests that run where it has none."""

import pytest
import torch
from torch import Tensor

from optimized import quantization
from optimized.dispatch import integers
from reference.encrypted import modular


def with_int8_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take int8 products wherever they fit; on a CPU without VNNI torch's are not exact, and others replace them."""
    if modular.has_vnni():
        return
    for module in (modular, integers):
        monkeypatch.setattr(module, "has_vnni", lambda: True)
    for module in (modular, quantization):
        monkeypatch.setattr(module, "int8_product", _exact)


def _exact(left: Tensor, right: Tensor) -> Tensor:
    assert left.dtype == right.dtype == torch.int8
    return left.int() @ right.int()
