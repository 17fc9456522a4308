"""Known-bad twins of load side effects: loading changes more than the values of the adapters."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import nn

import reference
from conformance.clauses.checkpoint.peft_files import CODES, TENSORS
from tests.baselines.checkpoint import MAGNITUDE, Right
from tests.baselines.checkpoint import checkpoint_breaks as breaks


@breaks("CKP-LOAD-EFFECTS", says="changed the parameter", source="huggingface/peft: low_cpu_mem_usage assigns")
class AssignsNewParameters(Right):
    def copy_one(self, layer, part, own, value):
        holder, _, name = part.rpartition(".")
        name = "lora_magnitude" if part == MAGNITUDE else name
        layer.get_submodule(holder)._parameters[name] = nn.Parameter(value.to(own.dtype))


@breaks("CKP-TRAINABLE", says="does not require gradients after loading", source="huggingface/peft: is_trainable=False")
class FreezesWhatItLoads(Right):
    def train_only(self, model, layers):
        model.requires_grad_(False)


@breaks("CKP-TRAINABLE", says="gradients after loading into a model", source="huggingface/peft #3580")
class KeepsEveryFlag(Right):
    def train_only(self, model, layers):
        pass


@breaks("CKP-TRAINABLE", says="requires gradients after loading", source="NVIDIA-NeMo/Automodel #547")
class UnfreezesTheModel(Right):
    def train_only(self, model, layers):
        model.requires_grad_(True)


@breaks("CKP-TRAINABLE", says="requires gradients after loading into a model (trainable")
class FreezesNothing(Right):
    def train_only(self, model, layers):
        for layer in layers.values():
            for tensor in self.parts(layer).values():
                tensor.requires_grad_(True)


@breaks("CKP-TRAINABLE", says="lora_magnitude does not require gradients after loading")
class FreezesMagnitudes(Right):
    def train_only(self, model, layers):
        super().train_only(model, layers)
        for layer in layers.values():
            if layer.lora_magnitude is not None:
                layer.lora_magnitude.requires_grad_(False)


@breaks("CKP-TRAINABLE", says="after loading: it was False", source="huggingface/transformers #34469")
class TakesTheModelOutOfEval(Right):
    def train_only(self, model, layers):
        super().train_only(model, layers)
        model.train()


class LoadsPlainModels(Right):
    """A target that adapts a plain model while loading, as the reference does."""

    def load_adapter(self, model, path):
        config = reference.load_adapter(model, path)
        self.after(model)
        return config

    def after(self, model):
        raise NotImplementedError


@breaks("CKP-TRAINABLE", says="the head is no longer tied to the embeddings", source="huggingface/transformers #45135")
class UntiesTheHead(LoadsPlainModels):
    def after(self, model):
        weight = model.head.weight
        model.head.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)


@breaks("CKP-TRAINABLE", says="does not require gradients after loading into a model (another dtype)")
class FreezesAdaptersOfAnotherDtype(LoadsPlainModels):
    def after(self, model):
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.dtype != next(model.parameters()).dtype:
                parameter.requires_grad_(False)


@breaks("CKP-LOAD-EFFECTS", says="changed the training flag")
class EvaluatesAfterLoading(Right):
    def copy(self, layers, named):
        super().copy(layers, named)
        for layer in layers.values():
            layer.eval()


@breaks("CKP-LOAD-EFFECTS", says="changed the gradient")
class DropsGradients(Right):
    def copy_one(self, layer, part, own, value):
        own.copy_(value)
        own.grad = None


@breaks("CKP-LOAD-EFFECTS", says="changed torch's random state")
class InitialisesAgain(Right):
    def copy(self, layers, named):
        for layer in layers.values():
            layer.init_lora_weights("xavier")
        super().copy(layers, named)


@breaks("CKP-FILES-KEPT", says="the model changed when the files")
class MapsTheFile(Right):
    def tensors(self, folder):
        size = int.from_bytes((folder / TENSORS).read_bytes()[:8], "little")
        header = json.loads((folder / TENSORS).read_bytes()[8 : 8 + size])
        mapped = torch.from_numpy(np.memmap(folder / TENSORS, np.uint8, "r+"))
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            found[name] = mapped[start:stop].view(CODES[entry["dtype"]]).reshape(entry["shape"])
        return found

    def read(self, folder, name):
        return super().read(folder, name)

    def copy_one(self, layer, part, own, value):
        # `value` maps the file, whose first page the clause overwrites
        own.data = value


@breaks("CKP-FILES-KEPT", says="load_adapter changed the files")
class RemovesWhatItRead(Right):
    def read(self, folder, name):
        data = super().read(folder, name)
        (folder / name).unlink()
        return data


@breaks("CKP-CAST", says="after loading")
class TakesTheFilesDtype(Right):
    def copy_one(self, layer, part, own, value):
        own.data = value


@breaks("CKP-CAST", says="is not the file's value rounded once", dtypes=("float32",))
class RoundsOnTheWay(Right):
    def copy_one(self, layer, part, own, value):
        own.copy_(value.bfloat16())


@breaks("CKP-OVERFLOW", says="raised nothing: expected an error", dtypes=("float16",))
class LooksAtShapesOnly(Right):
    def check_tensor(self, name, tensor, own):
        super().check_tensor(name, tensor, own.double())


@breaks("CKP-LORA-DTYPE", says="expected torch.", dtypes=("bfloat16",))
class CastsToTheModel(Right):
    def copy_one(self, layer, part, own, value):
        own.data = value.to(layer.weight.dtype)
