"""Known-bad twins of trainer weights: they stay in the model, are not written, or adapters go with them."""

from __future__ import annotations

import torch

import reference
from tests.baselines.training import trainer_breaks as breaks


@breaks("TRN-TRAINER-CLEAR", says="left the weight inner.base_layer.weight in the model")
class WritesAndKeepsTheWeights(reference.LoraTrainer):
    def save_and_clear_private_info(self, path):
        kept = {name: p.detach().clone() for name, p in self.lora_training_module.named_parameters()}
        super().save_and_clear_private_info(path)
        name = "inference_model.inner.base_layer.weight"
        self.lora_training_module.get_submodule("inference_model.inner").register_buffer("copy", kept[name])


@breaks("TRN-TRAINER-CLEAR", says="wrote no file")
class ClearsWithoutWriting(reference.LoraTrainer):
    def save_and_clear_private_info(self, path):
        for name, parameter in self.lora_training_module.named_parameters():
            if "base_layer.weight" in name:
                parameter.data = torch.zeros_like(parameter)


@breaks("TRN-TRAINER-CLEAR", says="after save_and_clear_private_info(path)")
class ClearsTheAdaptersToo(reference.LoraTrainer):
    def save_and_clear_private_info(self, path):
        super().save_and_clear_private_info(path)
        for parameter in self.lora_training_module.parameters():
            if parameter.requires_grad:
                parameter.data = torch.zeros_like(parameter)
