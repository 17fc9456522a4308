"""AdapterHub's `LoRALinear`, with DoRA and merging: `loraspec run conformance.targets.adapters`.

adapters 1.3.0 is for transformers 4.57, and does not import beside transformers 5. Its layers need neither: the target
imports their file and those of the configs alone. A layer has one adapter, chosen by a stack of one, as
`train_adapter` chooses it. AdapterHub adapts a model by the names of its architectures, not by those of modules, so the
group `model` is not claimed.
"""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any

from torch import nn

from conformance.targets.package_part import imported, without_init
from conformance.targets.wrapped_layer import WrappedLayer, check, library, version_of

WRITTEN_FOR = ("adapters", "1.3.0", "pip install --no-deps adapters==1.3.0")
ADAPTER = "default"


def _hash(config: Any) -> str:
    return hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode()).hexdigest()[:16]


# what the files import of a module that downloads adapters
UTILS = {
    "get_adapter_config_hash": _hash,
    "resolve_adapter_config": lambda config, **_: config,  # a config that is given is not downloaded
    "multigetattr": getattr,
    "multisetattr": setattr,
}


def _part() -> Any:
    """The package with the names that make a layer, of a few of its files."""
    with without_init("adapters", {"adapters.utils": UTILS}, stay=True):
        package, configs = imported("adapters"), imported("adapters.configuration")
        package.__version__ = version_of("adapters")
        package.LoRAConfig = configs.LoRAConfig = imported("adapters.configuration.adapter_config").LoRAConfig
        models = imported("adapters.configuration.model_adapters_config")
        package.ModelAdaptersConfig = configs.ModelAdaptersConfig = models.ModelAdaptersConfig
        package.Stack = imported("adapters.composition").Stack
        imported("adapters.methods.lora")
        return package


with library(*WRITTEN_FOR):
    hub = _part()

CONFORMANCE = {
    "name": "AdapterHub LoRALinear",
    "version": version_of("adapters"),
    "dropout_positions": ("pre",),
    "features": {
        **dict.fromkeys(("rslora", "adapter_dtype", "initialisation", "memory_efficient"), "absent"),
        "state_names": "other",
        "dora_norm": "differentiated",
        "dora_bias": "scaled",
        "dora_dropout": "adapter",
        "dora_zero_row": "nonfinite",
    },
}


class LinearLoRA(WrappedLayer):
    """AdapterHub's layer with a base layer's parameters and one adapter.

    Source: adapters 1.3.0, `adapters/methods/lora.py`.
    """

    library = "AdapterHub"

    def __init__(self, orig_linear: nn.Linear, *args: Any, use_dora: bool = False, **options: Any) -> None:
        super().__init__(orig_linear, *args, more={"use_dora": use_dora}, **options)

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **options: bool) -> Any:
        """AdapterHub's layer in the place of orig_linear, with an adapter that is active."""
        dtype = str(orig_linear.weight.dtype).removeprefix("torch.")
        config = hub.LoRAConfig(r=dim, alpha=alpha, dropout=dropout, use_dora=options["use_dora"], dtype=dtype)
        adapters = hub.ModelAdaptersConfig()
        adapters.add(ADAPTER, config)
        adapters.active_setup = hub.Stack(ADAPTER)
        layer = hub.methods.lora.LoRALinear.wrap(orig_linear, "selfattn", None, adapters, attn_key="q")
        layer.add_adapter(ADAPTER, layer_idx=0)
        return layer

    def adapters(self) -> Any:
        """Both adapter matrices, and DoRA's magnitude if there is one."""
        return list(self._adapter.parameters())

    @property
    def _adapter(self) -> Any:
        return self.wrapped.loras[ADAPTER]

    @property
    def lora_A(self) -> Any:
        """The adapter's first matrix."""
        return SimpleNamespace(weight=self._adapter.lora_A)

    @property
    def lora_B(self) -> Any:
        """The adapter's second matrix."""
        return SimpleNamespace(weight=self._adapter.lora_B)

    @property
    def lora_magnitude(self) -> Any:
        """DoRA's magnitude, [N, 1]."""
        return self._adapter.m

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self._adapter.scaling)

    @property
    def merged(self) -> bool:
        """Whether the update is merged into the weight."""
        return bool(self.wrapped.merged)

    def merge(self) -> None:
        """AdapterHub's merge, which `model.merge_adapter` calls for each layer."""
        self.wrapped.merge_adapter(ADAPTER)

    def unmerge(self) -> None:
        """AdapterHub's unmerge, which `model.reset_adapter` calls for each layer."""
        self.wrapped.reset_adapter()


with library(*WRITTEN_FOR):
    check(LinearLoRA)
