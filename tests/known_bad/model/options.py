"""Known-bad twins of options: an option of the config does not reach the layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL, AfterPatching, ChangesOptions


class Loses(RightModel):
    """A model that does not pass one option of the config to the layers."""

    option: str

    def options(self, c: Any) -> dict[str, Any]:
        return {key: value for key, value in super().options(c).items() if key != self.option}


@breaks("MOD-OPTIONS", says="gave lora_A [8, 256]", **MODEL)
class LosesDim(Loses):
    option = "dim"


@breaks("MOD-OPTIONS", says="alpha/dim of the config", **MODEL)
class LosesAlpha(Loses):
    option = "alpha"


@breaks("MOD-OPTIONS", says='method "uniform"', **MODEL)
class LosesTheMethod(Loses):
    option = "lora_A_init_method"


@breaks("MOD-OPTIONS", says="gave lora_A of torch.float32", **MODEL)
class LosesLoraDtype(Loses):
    option = "lora_dtype"


@breaks("MOD-OPTION-DROPOUT", says="0.0% of the update is dropped", source="pytorch/torchtune #995 (DR1)", **MODEL)
class LosesDropout(Loses):
    option = "dropout"


@breaks("MOD-OPTION-DROPOUT", says="one by one", **MODEL)
class LosesThePosition(Loses):
    option = "dropout_position"


@breaks("MOD-OPTION-RSLORA", says="the layer's scale is", source="exllamav2 #619 (SC2)", **MODEL)
class LosesRslora(Loses):
    option = "use_rslora"


@breaks("MOD-OPTION-DORA", says="has no lora_magnitude", source="unslothai/unsloth-zoo #954", **MODEL)
class LosesDora(Loses):
    option = "use_dora"


@breaks("MOD-OPTION-DORA", says="lora_magnitude is frozen", **MODEL)
class FreezesMagnitudes(RightModel):
    def unfreeze(self, model: nn.Module) -> None:
        super().unfreeze(model)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_magnitude"):
                parameter.requires_grad_(False)


@breaks("MOD-OPTIONS", says="alpha/dim of the config", **MODEL)
class RoundsTheScale(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.scale = round(layer.scale, 2)


@breaks("MOD-OPTIONS", says="alpha/dim of the config", **MODEL)
class TakesWholeAlphasOnly(ChangesOptions):
    def changed(self, options: Any) -> Any:
        return {**options, "alpha": max(int(options["alpha"]), 1)} if "alpha" in options else options
