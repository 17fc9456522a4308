"""Known-bad twins of corrupt files: loading accepts broken files, pickles and links."""

from __future__ import annotations

import json
import struct

import numpy as np
import torch

from conformance.clauses.checkpoint.peft_files import CODES, CONFIG, TENSORS
from tests.baselines.checkpoint import Right, unpickled
from tests.baselines.checkpoint import checkpoint_breaks as breaks


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
