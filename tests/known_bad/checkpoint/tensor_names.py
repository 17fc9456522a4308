"""Known-bad twins of tensor names: saving or loading changes the name of a layer."""

from __future__ import annotations

import torch

from conformance.clauses.checkpoint.peft_files import PREFIX
from tests.baselines.checkpoint import Right
from tests.baselines.checkpoint import checkpoint_breaks as breaks


class Renames(Right):
    """Tensors are saved under names changed by `renamed`."""

    def renamed(self, name):
        raise NotImplementedError

    def collected(self, layers):
        return {self.renamed(name): tensor for name, tensor in super().collected(layers).items()}


@breaks("CKP-NAMES", says="raised ValueError", source="huggingface/peft: replace(f'.{adapter_name}', '')")
class RemovesDefaultFromNames(Renames):
    def renamed(self, name):
        return name.replace(".default", "")


@breaks("CKP-NAMES", says="raised", source="str.replace used to remove a prefix")
class RemovesThePrefixEverywhere(Renames):
    def renamed(self, name):
        return PREFIX + name.replace(PREFIX, "")


@breaks("CKP-NAMES", says="was loaded with other values", source="huggingface/peft e611abe9e (#3282) (SD1)")
class LoadsByTheBeginning(Right):
    def copy(self, layers, named):
        found = sorted(named.items(), reverse=True)
        super().copy(layers, {n: next(v for name, v in found if name.startswith(n[:-3])) for n in layers})


@breaks("CKP-NAMES", says="was loaded with other values")
class LoadsByTheEnding(Right):
    def copy(self, layers, named):
        found = sorted(named.items())
        super().copy(layers, {n: next(v for name, v in found if name.endswith(n)) for n in layers})


@breaks("CKP-NAMES", says="was loaded with other values")
class ForgetsTheCase(Right):
    def copy(self, layers, named):
        lower = {name.lower(): held for name, held in named.items()}
        super().copy(layers, {name: lower[name.lower()] for name in layers})


@breaks("CKP-NAMES", says="raised ValueError", source="safetensors refuses tensors that are not contiguous")
class WantsPackedParameters(Right):
    def collected(self, layers):
        found = {n: p.detach() for n, p in super().collected({}).items()}
        for name, layer in layers.items():
            found |= {f"{PREFIX}{name}.{part}": tensor.detach() for part, tensor in self.parts(layer).items()}
        return found


@breaks("CKP-NAMES", says="has other values than the layer's parameter")
class SavesMemoryAsItLies(Right):
    def parts(self, layer):
        return {
            part: torch.as_strided(t, t.shape, (t.shape[-1], 1), 0) if t.ndim == 2 else t
            for part, t in super().parts(layer).items()
        }

    def check(self, layers, named, config):
        pass

    def copy(self, layers, named):
        for name, layer in layers.items():
            for part, own in super().parts(layer).items():
                own.data.copy_(named[name][part])


@breaks("CKP-NAMES", says="missing or unexpected tensors of inner.proj", source="huggingface/peft #3584")
class DropsNamesLikeAnotherAdapters(Right):
    def collected(self, layers):
        return {name: tensor for name, tensor in super().collected(layers).items() if ".inner." not in name}


@breaks("CKP-COMPILED", says="has other names", source="huggingface/peft #2957: _orig_mod in the names of a file")
class SavesTheNamesOfTheWrapper(Right):
    def plain(self, name):
        return name


@breaks("CKP-COMPILED", says="has other names", source="a prefix of the whole model removed, and not that of a part")
class RemovesTheWrapperAtTheBeginning(Right):
    def plain(self, name):
        return name.removeprefix("_orig_mod.")
