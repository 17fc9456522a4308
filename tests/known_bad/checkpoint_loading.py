"""Known-bad twins of group `checkpoint`: what is loaded, what is refused, and what is left."""

from __future__ import annotations

import json
import struct

import numpy as np
import torch
from torch import nn

import reference
from conformance.checkpoint.format import CODES, CONFIG, TENSORS
from tests.right_checkpoint import MAGNITUDE, Right, unpickled
from tests.right_checkpoint import checkpoint_breaks as breaks


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


@breaks("CKP-MISSING", says="raised nothing: expected an error")
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
    """Lets copy_ find out what does not fit."""

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


@breaks("CKP-DAMAGED", says="raised nothing: expected an error")
class ReadsWhatItCan(Right):
    def tensors(self, folder):
        data = self.read(folder, TENSORS)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            values = data[8 + size :][slice(*entry["data_offsets"])]
            length = int(np.prod(entry["shape"])) * struct.calcsize("f")
            tensor = torch.frombuffer(bytearray(values.ljust(length, b"\0")), dtype=torch.uint8)
            found[name] = tensor.view(CODES[entry["dtype"]]).reshape(entry["shape"])
        return found


@breaks("CKP-DAMAGED", says="raised SystemExit: expected an Exception")
class Exits(Right):
    def read(self, folder, name):
        data = super().read(folder, name)
        if name == TENSORS and len(data) < 16:
            raise SystemExit(f"{name} is broken")
        return data


@breaks("CKP-DAMAGED", says="raised nothing: expected an error")
class TakesABrokenConfigForNone(Right):
    def values(self, folder):
        try:
            return super().values(folder)
        except ValueError:
            return {}

    def check_layer(self, layer, config):
        pass

    def config(self, values, rest, names):
        return super().config(values, rest, names)


@breaks("CKP-ABSENT-FILES", says="raised nothing: expected an error")
class TakesAnAbsentConfigForNone(Right):
    def values(self, folder):
        return super().values(folder) if (folder / CONFIG).exists() else {}

    def check_layer(self, layer, config):
        pass


@breaks("CKP-PICKLE", says="which ran what was in it")
class UnpicklesWhatItFinds(Right):
    def tensors(self, folder):
        for name in (TENSORS, "adapter_model.bin"):
            if (folder / name).exists() and (folder / name).read_bytes()[:2] == b"\x80\x04":
                return unpickled(folder / name)
        return super().tensors(folder)


@breaks("CKP-PICKLE", says="raised nothing: expected an error")
class LoadsNothingWhereThereIsNoFile(Right):
    def tensors(self, folder):
        return super().tensors(folder) if (folder / TENSORS).exists() else {}

    def meets_names(self, name):
        pass

    def copy(self, layers, named):
        super().copy({name: layer for name, layer in layers.items() if name in named}, named)


@breaks("CKP-LINK", says="raised nothing: expected an error")
class FollowsLinks(Right):
    def read(self, folder, name):
        return (folder / name).read_bytes()


@breaks("CKP-LINK", says="raised ValueError")
class FollowsNone(Right):
    def read(self, folder, name):
        if (folder / name).is_symlink():
            raise ValueError(f"{name} is a link")
        return super().read(folder, name)


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
