"""Known-bad twins of adapter config: the config of a saved adapter loses a field, or loading invents one."""

from __future__ import annotations

from conformance.clauses.checkpoint.peft_files import REST
from tests.baselines.checkpoint import Right
from tests.baselines.checkpoint import checkpoint_breaks as breaks


@breaks("CKP-CONFIG-PEFT", says="dropout_position = 'post': expected 'pre'")
class DropsOutTheOutput(Right):
    def config(self, values, rest, names):
        config = super().config(values, rest, names)
        config.dropout_position = "post"
        return config


@breaks("CKP-CONFIG-PEFT", says="its targets adapt []")
class ReturnsNoTargets(Right):
    def config(self, values, rest, names):
        config = super().config(values, rest, names)
        config.target_modules = ["nothing"]
        return config


@breaks("CKP-ABSENT", says="the scale is")
class TakesItsOwnDefaults(Right):
    def values(self, folder):
        return {"lora_alpha": 32} | super().values(folder)

    def check_layer(self, layer, config):
        layer.scale = config.alpha / config.dim


@breaks("CKP-NEMO", says="load_adapter returned PeftConfig")
class ReadsPeftsFileOnly(Right):
    def config(self, values, rest, names):
        return super().config(values, None, names)


@breaks("CKP-CONFIG", says="has lora_alpha = 8: expected")
class LosesAlpha(Right):
    def described(self, config, model, names):
        return {k: v for k, v in super().described(config, model, names).items() if k != "lora_alpha"}


@breaks("CKP-CONFIG", says="has use_rslora = False: expected True")
class LosesRslora(Right):
    def described(self, config, model, names):
        return super().described(config, model, names) | {"use_rslora": False}


@breaks("CKP-CONFIG", says="has fan_in_fan_out = True")
class TakesEveryLayerForConv1D(Right):
    def described(self, config, model, names):
        return super().described(config, model, names) | {"fan_in_fan_out": True}


@breaks("CKP-TARGETS", says="PEFT takes target_modules")
class WritesItsOwnPatterns(Right):
    def targets(self, config, model, names):
        return config.target_modules


@breaks("CKP-TARGETS", says="PEFT takes target_modules")
class ListsWholeNames(Right):
    def targets(self, config, model, names):
        return names


@breaks("CKP-TARGETS", says="PEFT takes target_modules")
class ListsLastComponents(Right):
    def targets(self, config, model, names):
        return sorted({name.rpartition(".")[2] for name in names})


@breaks("CKP-CONFIG-BACK", says="load_adapter returned PeftConfig")
class ForgetsWhatPeftCannotSay(Right):
    def write(self, folder, files):
        super().write(folder, {name: data for name, data in files.items() if name != REST})


@breaks("CKP-CONFIG-BACK", says="load_adapter returned PeftConfig")
class ReturnsADtypeOfItsOwn(Right):
    def config(self, values, rest, names):
        config = super().config(values, rest, names)
        config.lora_dtype = None
        return config


@breaks("CKP-CONFIG-PEFT", says="raised ValueError", source="huggingface/peft #2397")
class KnowsOnlyTheFieldsOfEveryMethod(Right):
    def config(self, values, rest, names):
        return super().config(
            {key: value for key, value in values.items() if key not in ("r", "lora_alpha")}, rest, names
        )
