"""The uses of a layer that it may refuse: pickling, autocast, a change of its output in place. One layer shows it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def refused(layer: nn.Module, x: Tensor) -> tuple[str, ...]:
    """The names of the features that a layer lacks, because it raises an exception.

    Args:
        x: its input.
    """
    return tuple(feature for feature, use in USES.items() if _raises(use, layer, x))


def _raises(use: Callable[[nn.Module, Tensor], object], layer: nn.Module, x: Tensor) -> bool:
    try:
        use(layer, x.detach().requires_grad_())
    except Exception:  # noqa: BLE001  (whatever the layer raises)
        return True
    return False


def _pickled(layer: nn.Module, _: Tensor) -> None:
    pickle.loads(pickle.dumps(layer))


def _under_autocast(layer: nn.Module, x: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()


def _changed_in_place(layer: nn.Module, x: Tensor) -> None:
    layer(x).mul_(2).sum().backward()


USES: Mapping[str, Callable[[nn.Module, Tensor], object]] = {
    "pickling": _pickled,
    "autocast": _under_autocast,
    "inplace_output": _changed_in_place,
}
