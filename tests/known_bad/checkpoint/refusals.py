"""Known-bad twins of refusals: loading accepts what it must refuse, or changes the model before it refuses."""

from __future__ import annotations

from tests.baselines.checkpoint import MAGNITUDE, Right
from tests.baselines.checkpoint import checkpoint_breaks as breaks


class IgnoresAField(Right):
    """Loading ignores one field."""

    field = ""

    def check_fields(self, values):
        super().check_fields({key: value for key, value in values.items() if key != self.field})


@breaks("CKP-FIELDS", says="raised nothing: expected an error", source="huggingface/peft 37f8dc345 (#2489)")
class IgnoresLoraBias(IgnoresAField):
    field = "lora_bias"


@breaks("CKP-FIELDS", says="raised nothing: expected an error")
class IgnoresBias(IgnoresAField):
    field = "bias"


@breaks("CKP-FIELDS", says="raised nothing: expected an error")
class IgnoresReplication(IgnoresAField):
    field = "layer_replication"


@breaks("CKP-FIELDS", says="raised nothing: expected an error", source="a base that PiSSA has changed")
class IgnoresHowABegan(IgnoresAField):
    field = "init_lora_weights"


@breaks("CKP-FIELDS", says="raised nothing: expected an error")
class IgnoresInvocationTokens(IgnoresAField):
    field = "alora_invocation_tokens"


@breaks("CKP-FIELDS", says="it does not name lora_")
class SpeaksOfItsOwnOptions(Right):
    def check_value(self, field, option):
        pass


@breaks("CKP-MISSING", says="raised nothing: expected an error", source="vllm-project/vllm #34186, #55193")
class LoadsWhatIsThere(Right):
    def meets_names(self, name):
        pass

    def copy_one(self, layer, part, own, value):
        if value is not None:
            own.copy_(value)

    def copy(self, layers, named):
        held = {name: dict.fromkeys(self.parts(layer)) | named.get(name, {}) for name, layer in layers.items()}
        super().copy(layers, held)


@breaks("CKP-MISSING", says="it does not name")
class SaysNothing(Right):
    def meets_names(self, name):
        raise ValueError("missing keys")


class CopiesUntilItFails(Right):
    """Loading checks nothing before the copy, so `copy_` fails half-way."""

    def check(self, layers, named, config):
        pass

    def copy(self, layers, named):
        try:
            super().copy(layers, named)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"does not fit: {error} {sorted(layers)}") from None


breaks("CKP-SHAPE", says="which it refused, changed the value")(CopiesUntilItFails)


@breaks("CKP-MISSING", says="which it refused, changed the value")
class CopiesUntilOneIsMissing(CopiesUntilItFails):
    pass


@breaks("CKP-SHAPE", says="raised nothing: expected an error")
class SkipsWhatDoesNotFit(Right):
    def check_tensor(self, name, tensor, own):
        pass

    def copy_one(self, layer, part, own, value):
        if value.shape == own.shape:
            own.copy_(value)


@breaks("CKP-INTEGERS", says="raised nothing: expected an error")
class CastsIntegers(Right):
    def check_tensor(self, name, tensor, own):
        super().check_tensor(name, tensor.float(), own)


@breaks("CKP-FIELDS", says="raised nothing: expected an error")
class ReadsWhatItNeeds(Right):
    def check_fields(self, values):
        pass


@breaks("CKP-FIELDS", says="it does not name")
class NamesNoField(Right):
    def meets_field(self, key, value):
        raise ValueError("this adapter is not supported")


@breaks("CKP-FIELDS-EMPTY", says="raised ValueError")
class RefusesWhatSaysNothing(Right):
    def meets_unknown(self, key, value):
        self.meets_field(key, value)


@breaks("CKP-FIELDS-EMPTY", says="raised ValueError")
class AcceptsOnlyTheUsualStart(Right):
    began = (True, False)


@breaks(
    "CKP-FIELDS-EMPTY", says="raised ValueError: megatron_config", source="huggingface/peft writes it with plain LoRA"
)
class RefusesMegatronsFields(Right):
    def check_fields(self, values):
        super().check_fields(values)
        if values.get("megatron_config"):
            self.meets_field("megatron_config", values["megatron_config"])


@breaks("CKP-FIELDS-EMPTY", says="raised ValueError: loftq_config")
class RefusesLoftqsFields(Right):
    def check_fields(self, values):
        super().check_fields(values)
        if values.get("loftq_config"):
            self.meets_field("loftq_config", values["loftq_config"])


@breaks("CKP-UNEXPECTED", says="raised nothing: expected an error", source="NVIDIA-NeMo/Automodel #3501, PEFT #1689")
class IgnoresCopiesOfTheBase(Right):
    def meets_tensor(self, key):
        if key.endswith((".embed.weight", ".base_layer.weight")):
            return
        super().meets_tensor(key)


@breaks("CKP-PREFIX", says="raised nothing: expected an error", source="NVIDIA-NeMo/Automodel #3866")
class LoadsTheLayersThatFit(Right):
    def check(self, layers, named, config):
        fitting = {name: layer for name, layer in layers.items() if name in named}
        if not fitting:
            self.meets_names(min(layers))
        super().check(fitting, {name: named[name] for name in fitting}, config)

    def copy(self, layers, named):
        super().copy({name: layer for name, layer in layers.items() if name in named}, named)


@breaks("CKP-AGAIN", says="raised ValueError: refused before")
class RemembersARefusal(Right):
    refused = False

    def reset(self):
        self.refused = False

    def check(self, layers, named, config):
        if self.refused:
            self.refused = False
            raise ValueError("refused before")
        self.refused = True
        super().check(layers, named, config)
        self.refused = False


@breaks("CKP-AGAIN", says="was not loaded after a refusal")
class KeepsWhatItReadFirst(Right):
    first = None

    def reset(self):
        KeepsWhatItReadFirst.first = None

    def tensors(self, folder):
        found = super().tensors(folder)
        if all(t.numel() for t in found.values()) and self.first is not None:
            return {name: t + 1 for name, t in found.items()}
        KeepsWhatItReadFirst.first = found
        return found


@breaks("CKP-MISSING", says="raised nothing: expected an error", source="axolotl-ai-cloud/axolotl #3599, in review")
class TakesDoraWithoutAMagnitudeForLora(Right):
    def check(self, layers, named, config):
        for name, layer in layers.items():
            if name in named and layer.lora_magnitude is not None:
                named[name].setdefault(MAGNITUDE, layer.lora_magnitude.detach().clone())
        super().check(layers, named, config)
