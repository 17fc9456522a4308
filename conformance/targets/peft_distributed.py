"""Hugging Face PEFT's `get_peft_model` on several ranks: `loraspec run conformance.targets.peft_distributed`.

The suite wraps a model of one adapted layer in torch's `DistributedDataParallel` or `fully_shard`. Gradients are
clipped by torch's function, as PEFT has none of its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from conformance.targets.wrapped_layer import check, library, version_of

WRITTEN_FOR = ("peft", "0.21.2", "pip install 'loraspec[peers]'")
with library(*WRITTEN_FOR):
    import peft

    from conformance.targets.peft import ADAPTER
    from conformance.targets.peft import CONFORMANCE as OF_LAYERS
    from conformance.targets.peft import LinearLoRA as OneLayer

CONFORMANCE = {
    "name": "peft get_peft_model on ranks",
    "version": f"{version_of('peft')}+torch.{version_of('torch')}",
    "dropout_positions": OF_LAYERS["dropout_positions"],
    "features": {
        "state_names": "other",
        "initialisation": "absent",
        "norm_dtype": "gradients",
        "mixed_meshes": "absent",
    },
}
__all__ = ["CONFORMANCE", "LinearLoRA", "clip_grad_norm_"]


class LinearLoRA(OneLayer):
    """A model of one linear layer, adapted by `get_peft_model`; the names of the layer are those of its only layer.

    Source: peft 0.21.2, `peft/mapping_func.py`.
    """

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **options: Any) -> Any:
        """PEFT's layer in the model that `get_peft_model` returns."""
        config = peft.LoraConfig(r=dim, lora_alpha=alpha, lora_dropout=dropout, target_modules=["layer"], **options)
        model = nn.Sequential()
        model.add_module("layer", orig_linear)
        # it is no submodule, because its only layer is one already
        self.__dict__["model"] = peft.get_peft_model(model, config, ADAPTER, autocast_adapter_dtype=False)
        return model.layer

    def forward(self, x: Tensor) -> Tensor:
        """The forward of PEFT's model."""
        return self.__dict__["model"](x)  # type: ignore[no-any-return]


with library(*WRITTEN_FOR):
    check(LinearLoRA)
