"""Known-bad twins of accepted models: LoraTraining accepts the wrong models."""

from __future__ import annotations

from torch import nn

from tests.baselines.training import Replacing, Step, replacing_breaks
from tests.baselines.training import step_breaks as breaks


@breaks("TRN-LORA-NO-DROPOUT", says="raised ValueError", source="zama-ai/concrete-ml HEAD 1c356a957 (HY2)")
class LooksForDropout(Step):
    def check(self, model):
        if not any(hasattr(m, "lora_A") and hasattr(m, "lora_dropout") for m in model.modules()):
            raise ValueError("no LoRA layer")


@breaks("TRN-LORA-ABSENT", says="raised ValueError: no LoRA layer")
class WantsAnAdapter(Step):
    def check(self, model):
        if not any(hasattr(m, "lora_A") for m in model.modules()):
            raise ValueError("no LoRA layer")


@replacing_breaks("TRN-LORA-ABSENT", says="replaced []: expected ['lora_model.fc']")
class SkipsNamesThatContainLora(Replacing):
    def is_adapter(self, name, module):
        return "lora" in name


@breaks("TRN-LORA-WARNING", says="did not warn")
class TakesAnyModelSilently(Step):
    def check(self, model):
        pass


@breaks("TRN-LORA-PEFT", says="raised ValueError")
class WantsLinearAdapters(Step):
    def check(self, model):
        if not any(isinstance(getattr(m, "lora_A", None), nn.Linear) for m in model.modules()):
            raise ValueError("no LoRA layer")


@breaks("TRN-INIT", says="LoraTraining(model) replaced")
class ReplacesTheFirstLayerToo(Step):
    def __init__(self, inference_model):
        super().__init__(inference_model)
        self.replace_layers_with_custom(inference_model, skip_first=False)
