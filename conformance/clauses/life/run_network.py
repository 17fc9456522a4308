"""The network of a run: frozen layers, a norm with running statistics, and two adapted layers in PEFT's form.

A script of a run prints the source of this file's classes and functions.
"""

import inspect

import torch
from torch import nn

SCALE = 2.0


class Net(nn.Module):
    """`out = outer(inner(norm(first(x))))`; only the adapters are trainable."""

    def __init__(self, k: int, n: int, r: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(k, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4).requires_grad_(False)
        self.inner = Adapted(nn.Linear(4, 4), r, dropout)
        self.outer = Adapted(nn.Linear(4, n, bias=False), r, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.outer(self.inner(self.norm(self.first(x))))
        return out


class Adapted(nn.Module):
    """A frozen linear layer with an adapter: `x Wᵀ + b + s·(D(x) Aᵀ) Bᵀ` with dropout D."""

    def __init__(self, base: nn.Linear, r: int, dropout: float) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, base.out_features, bias=False)
        self.lora_dropout = nn.Dropout(dropout)
        self.scale = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base_layer(x) + self.scale * self.lora_B(self.lora_A(self.lora_dropout(x)))
        return out


def groups(net: nn.Module, *options: dict[str, float]) -> list[dict[str, object]]:
    """The optimiser's parameter groups: with two options lora_A and lora_B apart, with one both together."""
    named = [(name, p) for name, p in net.named_parameters() if "lora_" in name]
    parts = [[p for name, p in named if part in name] for part in ("lora_A", "lora_B")]
    if len(options) == 1:
        parts = [[p for _, p in named]]
    return [{"params": part, **option} for part, option in zip(parts, options)]  # noqa: B905  (a script may be short)


def mean_squares(out: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean of the squared differences."""
    return ((out - labels) ** 2).mean()


def half_squares(out: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Half the sum of the squared differences, for each row."""
    return ((out - labels) ** 2).sum() / (2 * len(out))


def broken(*_: object) -> None:
    """Raise, as a hook."""
    raise RuntimeError("this call was to fail")


def break_gradient(_: nn.Module, __: object, output: torch.Tensor) -> None:
    """Let the backward pass raise where it reaches this output, as a forward hook."""
    output.register_hook(broken)  # type: ignore[no-untyped-call]


def failed(call: object, *values: object) -> bool:
    """Whether a call raises."""
    try:
        call(*values)  # type: ignore[operator]
    except Exception:  # noqa: BLE001
        return True
    return False


TOGETHER = ((Net, Adapted), (groups,), (mean_squares,), (half_squares,), (break_gradient, broken), (broken,), (failed,))
SETUP = "\n\n\n".join("\n\n".join(inspect.getsource(part).strip() for part in parts) for parts in TOGETHER)
