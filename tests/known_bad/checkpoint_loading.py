"""Known-bad twins of group `checkpoint`: what is loaded, and what is left alone."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import nn

import reference
from conformance.clauses.checkpoint.peft_files import CODES, TENSORS
from tests.baselines.checkpoint import MAGNITUDE, Right
from tests.baselines.checkpoint import checkpoint_breaks as breaks


@breaks("CKP-FRESH", says="load_adapter adapted []")
class LoadsWhatThereIsAPlaceFor(Right):
    def meets_plain(self, model, named, config):
        return config


@breaks("CKP-FRESH", says="the output is not that of the model")
class AdaptsWithTheDefaultAlpha(Right):
    def meets_plain(self, model, named, config):
        for name in named:
            reference.patch_linear_module(
                model.get_submodule(name), config.dim, use_dora=config.use_dora, use_rslora=config.use_rslora
            )
        self.copy(self.layers(model), named)
        return config


@breaks("CKP-FRESH", says="and left adapters in it")
class AdaptsBeforeItRefuses(Right):
    def meets_plain(self, model, named, config):
        for name in named:
            reference.patch_linear_module(model.get_submodule(name))
        return super().meets_plain(model, named, config)


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


@breaks("CKP-PEFT", says="worst    y")
class IgnoresRslora(Right):
    def check_layer(self, layer, config):
        layer.scale = config.alpha / config.dim


@breaks("CKP-PEFT", says="worst    y")
class ScalesWhatItLoads(Right):
    def copy_one(self, layer, part, own, value):
        own.copy_(value * layer.scale if part == "lora_B.weight" else value)


@breaks("CKP-PEFT", says="worst    y")
class TransposesSquares(Right):
    def copy_one(self, layer, part, own, value):
        square = value.ndim == 2 and value.shape[0] == value.shape[1]
        own.copy_(value.T if square else value)


@breaks("CKP-SCALE", says="worst    y")
class KeepsTheModelsScale(Right):
    def check_layer(self, layer, config):
        pass


@breaks("CKP-SCALE", says="worst    y")
class IgnoresAlphaPattern(Right):
    def check_fields(self, values):
        super().check_fields({key: value for key, value in values.items() if key != "alpha_pattern"})

    def check_layer(self, layer, config):
        layer.scale = config.alpha / (config.dim**0.5 if config.use_rslora else config.dim)


class IgnoresWhatItDoesNotKnow(Right):
    """Loads what there is a place for: strict=False."""

    def check_fields(self, values):
        pass

    def meets_tensor(self, key):
        pass

    def meets_plain(self, model, named, config):
        return config

    def meets_names(self, name):
        pass

    def copy(self, layers, named):
        super().copy({name: layer for name, layer in layers.items() if name in named}, named)


breaks("CKP-EMBEDDING", says="refused nothing, and the output is off")(IgnoresWhatItDoesNotKnow)
breaks("CKP-UNEXPECTED", says="raised nothing: expected an error")(IgnoresWhatItDoesNotKnow)
breaks("CKP-PREFIX", says="raised nothing: expected an error")(IgnoresWhatItDoesNotKnow)


@breaks("CKP-CONV1D", says="refused nothing, and the output is off")
class TakesConv1DForLinear(IgnoresWhatItDoesNotKnow):
    def meets_plain(self, model, named, config):
        conv = model.inner.proj
        linear = nn.Linear(*conv.weight.shape, dtype=conv.weight.dtype)
        linear.weight, linear.bias = conv.weight, conv.bias
        model.inner.proj = reference.LinearLoRA(linear, config.dim, config.alpha)
        self.copy(self.layers(model), named)
        return config


@breaks("CKP-LOAD-EFFECTS", says="changed the parameter", source="huggingface/peft: low_cpu_mem_usage assigns")
class AssignsNewParameters(Right):
    def copy_one(self, layer, part, own, value):
        holder, _, name = part.rpartition(".")
        name = "lora_magnitude" if part == MAGNITUDE else name
        layer.get_submodule(holder)._parameters[name] = nn.Parameter(value.to(own.dtype))


@breaks("CKP-LOAD-EFFECTS", says="changed requires_grad", source="huggingface/peft: is_trainable=False")
class FreezesWhatItLoads(Right):
    def copy_one(self, layer, part, own, value):
        own.copy_(value)
        own.requires_grad_(False)


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
        # the first page: what the clause overwrites
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
