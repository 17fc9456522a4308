"""Known-bad twins of group `checkpoint`: what is written, and how."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time

import safetensors.torch
import torch

import reference
from conformance.clauses.checkpoint.peft_files import CONFIG, REST, TENSORS
from tests.baselines.checkpoint import MAGNITUDE, Right
from tests.baselines.checkpoint import checkpoint_breaks as breaks


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
    """Takes the file's scale for the layers, as it is."""

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


@breaks("CKP-CONFIG", says="has lora_alpha = 8: expected")
class LosesAlpha(Right):
    def described(self, config, model, names):
        return {k: v for k, v in super().described(config, model, names).items() if k != "lora_alpha"}


@breaks("CKP-CONFIG", says="has use_rslora = False: expected True")
class LosesRslora(Right):
    def described(self, config, model, names):
        return super().described(config, model, names) | {"use_rslora": False}


@breaks("CKP-CONFIG", says="has fan_in_fan_out = True")
class TakesEveryLayerForConv1D(Right):
    def described(self, config, model, names):
        return super().described(config, model, names) | {"fan_in_fan_out": True}


@breaks("CKP-TARGETS", says="PEFT takes target_modules")
class WritesItsOwnPatterns(Right):
    def targets(self, config, model, names):
        return config.target_modules


@breaks("CKP-TARGETS", says="PEFT takes target_modules")
class ListsWholeNames(Right):
    def targets(self, config, model, names):
        return names


@breaks("CKP-TARGETS", says="PEFT takes target_modules")
class ListsLastComponents(Right):
    def targets(self, config, model, names):
        return sorted({name.rpartition(".")[2] for name in names})


@breaks("CKP-CONFIG-BACK", says="load_adapter returned PeftConfig")
class ForgetsWhatPeftCannotSay(Right):
    def write(self, folder, files):
        super().write(folder, {name: data for name, data in files.items() if name != REST})


@breaks("CKP-CONFIG-BACK", says="load_adapter returned PeftConfig")
class ReturnsADtypeOfItsOwn(Right):
    def config(self, values, rest, names):
        config = super().config(values, rest, names)
        config.lora_dtype = None
        return config


class WritesInPlace(Right):
    """Opens the files themselves."""

    def write(self, folder, files):
        for name, data in files.items():
            (folder / name).write_bytes(data)


breaks("CKP-READER", says="was written in place")(WritesInPlace)


@breaks("CKP-WHOLE", says="is no longer what it was before a save that failed")
class TruncatesFirst(WritesInPlace):
    pass


@breaks("CKP-WHOLE", says="is no longer what it was before a save that failed")
class ReplacesTheConfigFirst(Right):
    def write(self, folder, files):
        for name in (CONFIG, REST, TENSORS):
            super().write(folder, {name: files[name]})


@breaks("CKP-WHOLE", says="where there was nothing")
class LeavesPartsInANewFolder(Right):
    def write(self, folder, files):
        if (folder / TENSORS).exists():
            super().write(folder, files)
            return
        for name, data in files.items():
            (folder / name).write_bytes(data)


@breaks("CKP-WHOLE", says="raised None: expected an error")
class SwallowsTheError(Right):
    def write(self, folder, files):
        with contextlib.suppress(OSError):
            super().write(folder, files)


@breaks("CKP-WHOLE", says="is no safetensors file")
class SwallowsTheErrorInPlace(WritesInPlace):
    def write(self, folder, files):
        with contextlib.suppress(OSError):
            super().write(folder, files)


@breaks("CKP-LEFTOVERS", says="a save that failed left")
class LeavesTemporaryFiles(Right):
    def write(self, folder, files):
        (folder / f".{TENSORS}.new").write_bytes(files[TENSORS])
        super().write(folder, files)


@breaks("CKP-LEFTOVERS", says="a save that was done left")
class KeepsABackup(Right):
    def write(self, folder, files):
        for file in list(folder.iterdir()):
            (folder / f"{file.name}.bak").write_bytes(file.read_bytes())
        super().write(folder, files)


@breaks("CKP-RESUME-STEP", says="load_training returned 0: expected")
class LosesTheStep(Right):
    def save_training(self, training, path, step=0):
        reference.save_training(training, path)
