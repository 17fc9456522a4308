"""SpeechBrain's `LoRA` and `AdaptedModel`: `loraspec run conformance.targets.speechbrain`.

Only `speechbrain/nnet/adapters.py` and what it needs are imported: the whole package also needs torchaudio, which has
no build for a CPU. `AdaptedModel` changes the model in place and wraps it; the suite keeps the model.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from conformance.targets.package_part import imported, without_init
from conformance.targets.wrapped_layer import WrappedLayer, check, library, version_of

WRITTEN_FOR = ("speechbrain", "1.1.2", "pip install --no-deps speechbrain==1.1.2")
NAME = "speechbrain.nnet.adapters"
with library(*WRITTEN_FOR):
    with without_init("speechbrain", {}):
        adapters = imported(NAME)
        found = {name: sys.modules[name] for name in ("speechbrain", NAME)}
    sys.modules.update(found | sys.modules)  # so that pickle finds its classes
    AdaptedModel, LoRA = adapters.AdaptedModel, adapters.LoRA

CONFORMANCE = {
    "name": "SpeechBrain LoRA",
    "version": version_of("speechbrain"),
    "dropout_positions": (),
    "features": {
        **dict.fromkeys(("dropout", "rslora", "adapter_dtype", "initialisation", "memory_efficient"), "absent"),
        "state_names": "other",
        "name_rule": "shell",
        **dict.fromkeys(("exclusions", "default_targets", "linear_only", "in_place", "string_pattern"), "absent"),
        "output_head": "chosen",
        "no_match": "count alone",
        "shared_names": "first name",
        "argument_checks": "when used",
    },
    "deviations": {
        "MOD-TRAINING-FLAG": "without dropout no part of SpeechBrain's LoRA has a use for a mode",
        "MOD-SECOND": "a call freezes the whole model, earlier adapters included; AdaptedModel is made once of a model",
    },
}
WRAPPER = "speechbrain_wrapper"
NAMES = {"base_layer": "pretrained_module", "lora_A": "adapter_down_proj", "lora_B": "adapter_up_proj"}


class Adapter(LoRA):  # type: ignore[misc, valid-type]
    """SpeechBrain's layer as a class that `AdaptedModel` takes, with its modules under this project's names."""

    def __init__(self, target_module: nn.Module, **options: Any) -> None:
        if isinstance(target_module, LoRA):  # which has no weight, unlike this class
            raise AttributeError("'LoRA' object has no attribute 'weight'")
        super().__init__(target_module, **options)
        for name, own in NAMES.items():
            self.add_module(name, self._modules.pop(own))

    pretrained_module = property(lambda self: self.base_layer)
    adapter_down_proj = property(lambda self: self.lora_A)
    adapter_up_proj = property(lambda self: self.lora_B)
    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)


class LinearLoRA(WrappedLayer):
    """SpeechBrain's layer around a linear layer; its adapter is created in torch's default dtype.

    Source: speechbrain 1.1.2, `speechbrain/nnet/adapters.py`.
    """

    library = "SpeechBrain"
    dropout_positions = ()

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **_: bool) -> Any:
        """SpeechBrain's layer, which keeps orig_linear as its pretrained_module."""
        del dropout  # refused before
        return LoRA(orig_linear, rank=dim, alpha=alpha)

    @property
    def weight(self) -> Tensor:
        """The base layer's weight."""
        return self.wrapped.pretrained_module.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.wrapped.pretrained_module.bias  # type: ignore[no-any-return]

    @property
    def lora_A(self) -> Any:
        """The adapter's first linear layer."""
        return self.wrapped.adapter_down_proj

    @property
    def lora_B(self) -> Any:
        """The adapter's second linear layer."""
        return self.wrapped.adapter_up_proj


def apply_lora_to_linear_modules(model: nn.Module, peft_config: Any) -> int:
    """SpeechBrain's `AdaptedModel` of a model, with match_all_linear as its `all_linear`; the number of its layers."""
    _check_options(peft_config)
    if peft_config.exclude_modules:
        raise NotImplementedError("exclude_modules: AdaptedModel has no exclusions")
    if isinstance(peft_config.target_modules, str):
        raise NotImplementedError(f"target_modules = {peft_config.target_modules!r}: AdaptedModel takes a list")
    model.__dict__[WRAPPER] = AdaptedModel(
        model,
        Adapter,
        all_linear=peft_config.match_all_linear,
        target_layers=peft_config.target_modules or [],
        adapter_kwargs={"rank": peft_config.dim, "alpha": peft_config.alpha},
    )
    return len(model.__dict__[WRAPPER].replace_layers)


def _check_options(c: Any) -> None:
    if c.dropout_position not in ("pre", "post"):
        raise ValueError(f"dropout_position = {c.dropout_position!r}: expected pre or post")
    for name in ("dropout", "lora_dtype", "use_dora", "use_rslora"):
        if getattr(c, name, None):
            raise NotImplementedError(f"{name} = {getattr(c, name)!r}: SpeechBrain's LoRA has none")


def patch_linear_module(
    orig_linear: nn.Module,
    dim: int = 8,
    alpha: Any = 32,
    dropout: float = 0.0,
    dropout_position: str = "post",
    lora_A_init_method: str = "xavier",
    lora_dtype: Any = None,
    use_triton: bool = True,
) -> Any:
    """The layer that takes the place of the only layer of a model."""
    del lora_A_init_method, use_triton
    model = nn.ModuleDict({"layer": orig_linear})
    options = {"dim": dim, "alpha": alpha, "dropout": dropout, "dropout_position": dropout_position}
    targets = {"match_all_linear": False, "target_modules": ["layer"], "exclude_modules": None}
    apply_lora_to_linear_modules(model, SimpleNamespace(**targets, **options, lora_dtype=lora_dtype))
    return model["layer"]


with library(*WRITTEN_FOR):
    check(LinearLoRA)
