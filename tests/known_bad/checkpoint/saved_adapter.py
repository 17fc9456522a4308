"""Known-bad twins of saved adapter: saving writes wrong tensors, names or bits."""

from __future__ import annotations

import hashlib
import shutil
import time

import safetensors.torch
import torch

import reference
from conformance.clauses.checkpoint.peft_files import PREFIX
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


@breaks("CKP-LAYOUT", says="has other values than the layer's parameter")
class BakesTheScaleIn(Right):
    def parts(self, layer):
        found = super().parts(layer)
        return found | {"lora_B.weight": found["lora_B.weight"] * layer.scale}


@breaks("CKP-LAYOUT", says="expected torch.float32")
class SavesTransposed(Right):
    def encoded(self, tensors):
        return super().encoded({name: t.T.contiguous() for name, t in tensors.items()})


@breaks("CKP-LAYOUT", says=f"{MAGNITUDE}: it has")
class DropsTheMagnitude(Right):
    def collected(self, layers):
        return {name: t for name, t in super().collected(layers).items() if MAGNITUDE not in name}


@breaks("CKP-LAYOUT", says="is torch.float32 ", dtypes=("bfloat16",))
class SavesInFloat32(Right):
    def encoded(self, tensors):
        return super().encoded({name: t.float() for name, t in tensors.items()})


@breaks("CKP-LAYOUT", says="lora_A.default.weight: expected")
class KeepsTheNameOfTheAdapter(Right):
    def encoded(self, tensors):
        return super().encoded(tensors | {n.replace("lora_A", "lora_A.default"): t.clone() for n, t in tensors.items()})


@breaks("CKP-ROUND-TRIP", says="is not what was saved", dtypes=("float32",))
class SavesInBfloat16(Right):
    def encoded(self, tensors):
        return super().encoded({name: t.bfloat16() for name, t in tensors.items()})


@breaks("CKP-ROUND-TRIP", says="is not what was saved")
class LoadsAllButTheLast(Right):
    def copy(self, layers, named):
        super().copy(dict(list(layers.items())[:-1]), named)


@breaks("CKP-ROUND-TRIP", says="is not what was saved")
class LoadsNoMagnitude(Right):
    def copy_one(self, layer, part, own, value):
        if part != MAGNITUDE:
            own.copy_(value)


@breaks("CKP-BYTES", says="has other bytes than at first", source="huggingface/safetensors: metadata is a HashMap")
class WritesMetadataAsItComes(Right):
    def encoded(self, tensors):
        return safetensors.torch.save(tensors, {"format": "pt", "a": "1", "b": "2", "c": "3", "d": "4"})


@breaks("CKP-BYTES", says="has other bytes than at first")
class StampsTheTime(Right):
    def described(self, config, model, names):
        return super().described(config, model, names) | {"peft_version": str(time.time_ns())}


@breaks("CKP-BYTES", says="with its modules registered in reverse")
class ListsTheTensorsAsRegistered(Right):
    def encoded(self, tensors):
        return safetensors.torch.save(tensors, {"names": ", ".join(tensors)})


@breaks("CKP-BYTES", says="with its modules registered in reverse, adapter_config.json says")
class NamesTheFirstModule(Right):
    def described(self, config, model, names):
        return super().described(config, model, names) | {"auto_mapping": {"first": next(iter(self.layers(model)))}}


@breaks("CKP-BYTES", says="expected it sorted, or as the modules are registered")
class ListsASet(Right):
    def targets(self, config, model, names):
        return sorted(names, key=lambda name: hashlib.md5(name.encode()).digest())


@breaks("CKP-SAVE-EFFECTS", says="changed the training flag")
class EvaluatesTheModel(Right):
    def collected(self, layers):
        for layer in layers.values():
            layer.eval()
        return super().collected(layers)


@breaks("CKP-SAVE-EFFECTS", says="changed torch's random state")
class NamesFilesAtRandom(Right):
    def write(self, folder, files):
        torch.rand(1)
        super().write(folder, files)


@breaks("CKP-SAVE-EFFECTS", says="changed the config")
class ResolvesTargetsInTheConfig(Right):
    def targets(self, config, model, names):
        config.exclude_modules = names
        return super().targets(config, model, names)


@breaks("CKP-FOLDER", says="raised FileNotFoundError")
class NeedsTheParents(Right):
    def make(self, folder):
        folder.mkdir(exist_ok=True)


@breaks("CKP-FOLDER", says="README.md, which it did not write")
class EmptiesTheFolder(Right):
    def make(self, folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


class TakesAnyScale(Right):
    """Loading sets the layers' scale from the file without a check."""

    def check_layer(self, layer, config):
        self.taken = config

    def copy(self, layers, named):
        super().copy(layers, named)
        for layer in layers.values():
            layer.scale = self.taken.alpha / (layer.dim**0.5 if self.taken.use_rslora else layer.dim)


@breaks("CKP-MISMATCH", says="the adapter gives another output")
class BelievesTheConfig(TakesAnyScale):
    def meets_another(self, layer, config):
        pass


@breaks("CKP-MISMATCH", says="says a scale of")
class LoadsByItsOwnScale(Right):
    def meets_another(self, layer, config):
        pass

    def check_layer(self, layer, config):
        pass


@breaks("CKP-NOTHING", says="raised None: expected ValueError")
class SavesNothing(Right):
    def meets_nothing(self):
        pass


@breaks("CKP-MERGED", says="after merging before save the output is off")
class SavesHalfOfWhatIsMerged(Right):
    def parts(self, layer):
        found = super().parts(layer)
        return found | {"lora_B.weight": found["lora_B.weight"] * 0} if layer.merged else found


@breaks("CKP-MERGED", says="after merging before load the output is off")
class LeavesTheLayerMerged(Right):
    @torch.no_grad()
    def copy(self, layers, named):
        for name, layer in layers.items():
            for part, own in self.parts(layer).items():
                own.copy_(named[name][part])


@breaks("CKP-ROUND-TRIP", says="into a copy of the model changed the value of")
class LoadsIntoTheSavedModelToo(Right):
    saved = None

    def reset(self):
        self.saved = None

    def save_adapter(self, model, config, path):
        super().save_adapter(model, config, path)
        self.saved = self.layers(model)

    def copy(self, layers, named):
        super().copy(layers, named)
        if self.saved is not None and set(self.saved) == set(layers):
            super().copy(self.saved, named)


@breaks("CKP-LAYOUT", says="has base_model.model.embed.weight", source="huggingface/peft: save_embedding_layers='auto'")
class SavesTheTiedEmbeddings(Right):
    def save_adapter(self, model, config, path):
        self.model = model
        super().save_adapter(model, config, path)

    def collected(self, layers):
        found = super().collected(layers)
        if self.model.embed.weight is not self.model.head.weight:
            return found
        return found | {f"{PREFIX}embed.weight": self.model.embed.weight.detach().clone()}
