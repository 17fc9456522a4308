"""Known-bad twins of load side effects: loading changes more than the values of the adapters."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import nn

from conformance.clauses.checkpoint.peft_files import CODES, TENSORS
from tests.baselines.checkpoint import MAGNITUDE, Right
from tests.baselines.checkpoint import checkpoint_breaks as breaks


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
