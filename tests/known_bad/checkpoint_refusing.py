"""Known-bad twins of group `checkpoint`: what is refused, and that nothing of it is loaded."""

from __future__ import annotations

import json
import struct

import numpy as np
import torch

from conformance.clauses.checkpoint.peft_files import CODES, CONFIG, TENSORS
from tests.baselines.checkpoint import Right, unpickled
from tests.baselines.checkpoint import checkpoint_breaks as breaks


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
