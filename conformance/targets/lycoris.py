"""LyCORIS's `LoConModule` on linear layers, and its function: `loraspec run conformance.targets.lycoris`.

`LinearLoRA` adds the product with a weight that it rebuilds in each call, which is LyCORIS's default and has no dropout
of its output. `conformance.targets.lycoris:bypass` adds (x Aᵀ) Bᵀ instead, as with `bypass_mode=True`. LyCORIS keeps
the adapters of a model in a network of their own, beside the model, so the group `model` is not claimed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from conformance.targets.wrapped_layer import WrappedLayer, check, library, version_of

WRITTEN_FOR = ("lycoris-lora", "4.1.3", "pip install --no-deps lycoris-lora==4.1.3 einops toml")
with library(*WRITTEN_FOR):
    from lycoris.functional.locon import bypass_forward_diff
    from lycoris.modules.locon import LoConModule

FEATURES = {
    **dict.fromkeys(("adapter_dtype", "initialisation", "memory_efficient"), "absent"),
    "zero_alpha": "rank",
    "state_names": "other",
    "merged_state": "merged",  # of the model's weights; the adapters are in a file of their own
}
CONFORMANCE = {
    "name": "LyCORIS LoConModule",
    "version": version_of("lycoris-lora"),
    "dropout_positions": (),
    "features": {**FEATURES, "dropout": "absent", "dora_norm": "differentiated", "dora_zero_row": "zero"},
    "deviations": {"DORA-INIT": "the magnitude is computed in float32, also where the weight is float64"},
}


class LoConLayer(WrappedLayer):
    """LyCORIS's module around a linear layer.

    LyCORIS holds the linear layer in a list, so that it is no submodule; here both are, as model and network are.
    Merged, the linear layer alone computes, as after LyCORIS's `restore`.
    Source: lycoris-lora 4.1.3, `lycoris/modules/locon.py`.
    """

    library = "LyCORIS"
    dropout_positions: tuple[str, ...] = ()
    bypass = merged = False

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **options: bool) -> Any:
        """LyCORIS's module, which adds its update to the output of orig_linear."""
        self.linear = orig_linear
        module = LoConModule(
            "lycoris",
            orig_linear,
            lora_dim=dim,
            alpha=alpha,
            dropout=dropout,
            bypass_mode=self.bypass,
            rs_lora=options["use_rslora"],
            weight_decompose=options.get("use_dora", False),
        )
        return module.to(orig_linear.weight.dtype)  # buffers too, as `network.to(dtype)` casts them

    def adapters(self) -> list[Tensor]:
        """Both adapter matrices, and DoRA's magnitude if there is one."""
        return list(self.wrapped.parameters())

    @property
    def weight(self) -> Tensor:
        """The base layer's weight."""
        return self.wrapped.org_weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.wrapped.org_module[0].bias  # type: ignore[no-any-return]

    @property
    def lora_A(self) -> Any:
        """The adapter's first linear layer."""
        return self.wrapped.lora_down

    @property
    def lora_B(self) -> Any:
        """The adapter's second linear layer."""
        return self.wrapped.lora_up

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self.wrapped.scale)

    def merge(self) -> None:
        """LyCORIS's merge into the linear layer; a second call would merge again, and has no effect here."""
        if not self.merged:
            self.wrapped.onfly_merge()
            self.merged = True

    def unmerge(self) -> None:
        """LyCORIS's way back from its merge."""
        if self.merged:
            self.wrapped.onfly_restore()
            self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        """LyCORIS's forward, or that of the merged linear layer."""
        return self.linear(x) if self.merged else self.wrapped(x)  # type: ignore[no-any-return]


class LinearLoRA(LoConLayer):
    """LyCORIS's module with a rebuilt weight, and with DoRA."""

    def __init__(self, orig_linear: nn.Linear, *args: Any, use_dora: bool = False, **options: Any) -> None:
        super().__init__(orig_linear, *args, more={"use_dora": use_dora}, **options)

    @property
    def lora_magnitude(self) -> Any:
        """DoRA's magnitude, [N, 1]."""
        return self.wrapped.dora_scale


class BypassLoRA(LoConLayer):
    """LyCORIS's module in bypass mode, which has dropout of its output, and ignores `weight_decompose`."""

    dropout_positions = ("post",)
    bypass = True


def lora_linear(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor, scale: float
) -> Tensor:
    """LyCORIS's function for the adapter's term, beside a frozen layer."""
    update: Tensor = bypass_forward_diff(x, None, lora_A, lora_B, None, gamma=scale)
    return update if weight is None else F.linear(x, weight, bias) + update


bypass = SimpleNamespace(
    CONFORMANCE={
        "name": "LyCORIS LoConModule, bypass",
        "version": CONFORMANCE["version"],
        "dropout_positions": ("post",),
        "features": FEATURES,
    },
    LinearLoRA=BypassLoRA,
)

with library(*WRITTEN_FOR):
    check(LinearLoRA)
