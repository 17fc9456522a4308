"""Known-bad twins of files with experts: experts, orders, halves or ranks are confused, or checks left out."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import reference
from conformance.clauses.checkpoint.peft_files import PREFIX, config_in, tensors_in
from tests.baselines.checkpoint import checkpoint_breaks
from tests.baselines.expert_files import RightFiles, count, experts

ONE = ("float64",)


def breaks(clause, says, source=""):
    return checkpoint_breaks(clause, says=says, dtypes=ONE, source=source)


def changed(tensors, side, change):
    """The tensors with a change of each lora_A or lora_B."""
    return {key: change(tensor) if f"lora_{side}" in key else tensor for key, tensor in tensors.items()}


@breaks("CKP-EXPERTS-PEFT", "the output is off by", "unslothai/unsloth-zoo #1269: B unpacked expert by expert")
class UnpacksBExpertByExpert(RightFiles):
    def tensors(self, tensors, model):
        e = count(model)
        return changed(tensors, "B", lambda B: B.unflatten(1, (e, -1)).mT.flatten(1))


@breaks("CKP-EXPERTS-PEFT", "the output is off by", "A unpacked as B is")
class UnpacksAInterleaved(RightFiles):
    def tensors(self, tensors, model):
        e = count(model)
        return changed(tensors, "A", lambda A: A.unflatten(0, (-1, e)).transpose(0, 1).flatten(0, 1))


@breaks("CKP-EXPERTS-PEFT", "raised ValueError", "the outermost keys taken for the projection registered first")
class NestsTheOtherWay(RightFiles):
    def tensors(self, tensors, model):
        inner, outer = ".experts.base_layer.lora_", ".experts.lora_"
        if not any(inner in key for key in tensors):
            return tensors
        swap = {inner: outer, outer: inner}
        return {re.sub("|".join(map(re.escape, swap)), lambda m: swap[m[0]], key): t for key, t in tensors.items()}


@breaks("CKP-EXPERTS-PEFT", "the output is off by", "vllm-project/vllm #55545: rsLoRA ignored for experts")
class IgnoresRsLoRAOfExperts(RightFiles):
    def values(self, values):
        return values | {"use_rslora": False}


@breaks("CKP-EXPERTS-PEFT", "the output is off by", "alpha_pattern read for linear modules alone")
class IgnoresAlphasOfExperts(RightFiles):
    def values(self, values):
        return values | {"alpha_pattern": {}}


@breaks("CKP-EXPERTS-PEFT", "the output is off by", "alpha divided by the file's rank, not by the parameter's")
class DividesByTheRankOfTheFile(RightFiles):
    def loaded(self, model, folder):
        config = super().loaded(model, folder)
        for module in experts(model):
            for name in module.scales:
                module.scales[name] *= module.lora_A[name].shape[1] / config.dim
        return config


class Turns(RightFiles):
    """A target that brings older files into the order of new ones by itself."""

    def is_old(self, A, B, module, name):
        """Whether A reads the outputs, by the shapes."""
        k, n = module.down_proj.shape[1:] if module.is_transposed else module.down_proj.shape[:0:-1]
        return (A.shape[1], B.shape[0]) == (n, k) != (k, n)

    def turned(self, A, B, e):
        """A and B in the other order."""
        own, each = A.unflatten(0, (e, -1)), B.unflatten(1, (-1, e)).permute(2, 0, 1)
        return each.mT.flatten(0, 1), own.mT.permute(1, 2, 0).flatten(1)

    def tensors(self, tensors, model):
        e = count(model)
        for key in [key for key in tensors if "lora_A" in key]:
            other, module = key.replace("lora_A", "lora_B"), experts(model)[0]
            A, B = tensors[key], tensors[other]
            if self.is_old(A, B, module, key):
                tensors |= {key: self.turned(A, B, e)[0], other: self.turned(A, B, e)[1]}
        return tensors


@breaks("CKP-EXPERTS-OLD", "refused nothing, and the output is off by", "a reshape in place of a transposition")
class ReshapesOldFiles(Turns):
    def is_old(self, A, B, module, name):
        shapes = {tuple(p.shape[1:]) for p in module.parameters(recurse=False) if p.ndim == 3}
        now = (A.shape[1], B.shape[0]) if module.is_transposed else (B.shape[0], A.shape[1])
        return now not in shapes

    def turned(self, A, B, e):
        right = super().turned(A, B, e)
        return B.mT.reshape(right[0].shape), A.mT.reshape(right[1].shape)


@breaks("CKP-EXPERTS-OLD", "expected ValueError or the output", "shapes that are found not to fit while copying")
class FailsAtACopy(RightFiles):
    def loaded(self, model, folder):
        try:
            return super().loaded(model, folder)
        except ValueError as error:
            raise RuntimeError(str(error)) from None

    def values(self, values):
        return values | {"rank_pattern": {".*_proj": 7}} if values["peft_version"] != "0.21.2" else values


@breaks("CKP-EXPERTS-OLD-READ", "refused a file of PEFT", "new files alone supported")
class RefusesOldFiles(RightFiles):
    def values(self, values):
        if values["peft_version"] in (None, "0.18.1", "0.19.0"):
            raise ValueError("an old file")
        return values


@breaks("CKP-EXPERTS-AMBIGUOUS", "off by", "vllm-project/vllm #52194, NVIDIA-NeMo/Automodel #3626")
class ReadsOldFilesAsNew(RightFiles):
    def values(self, values):
        return values | {"peft_version": "0.21.2"} if values["peft_version"] else values


@breaks("CKP-EXPERTS-AMBIGUOUS", "expected a ValueError", "a file without a version taken for a new one")
class TakesAnUnknownVersionForNew(RightFiles):
    def values(self, values):
        return values | {"peft_version": values["peft_version"] or "0.21.2"}


@breaks("CKP-EXPERTS-AMBIGUOUS", "refused a file with peft_version 0.22.0", "one version that is compared for equality")
class KnowsOneVersion(RightFiles):
    def values(self, values):
        return values | {"peft_version": "0.19.1" if values["peft_version"] == "0.19.1" else None}


@breaks("CKP-EXPERTS-AMBIGUOUS", "off by", "an order that each projection has of its own")
class DecidesForEachProjection(Turns):
    def is_old(self, A, B, module, name):
        return super().is_old(A, B, module, name) and ".base_layer." not in name


@breaks("CKP-EXPERTS-AMBIGUOUS", "contradict each other raised None", "an order that each module has of its own")
class DecidesForEachModule(Turns):
    def tensors(self, tensors, model):
        for i, module in enumerate(experts(model)):
            own = {key: t for key, t in tensors.items() if f"layers.{i}." in key}
            A, B = (own.get(f"{PREFIX}layers.{i}.mlp.experts.lora_{side}.weight") for side in "AB")
            if self.is_old(A, B, module, ""):
                both = [(key, key.replace("lora_A", "lora_B")) for key in own if "lora_A" in key]
                for a, b in both:
                    tensors[a], tensors[b] = self.turned(own[a], own[b], count(model))
        return tensors


def of_each(tensors):
    """Whether the keys are of each expert."""
    return any(re.search(r"experts\.\d", key) for key in tensors)


@breaks("CKP-EXPERTS-EACH", "refused nothing, and the output is off by", "NVIDIA-NeMo/Megatron-Bridge #5376")
class JoinsInterleavedHalvesAsConcatenated(RightFiles):
    def loaded(self, model, folder):
        config, tensors = super().loaded(model, folder), tensors_in(folder)
        for module in experts(model) if of_each(tensors) else ():
            if module.is_transposed:
                B = module.lora_B["gate_up_proj"]
                B.data.copy_(torch.cat([B[:, ::2], B[:, 1::2]], 1).detach())
        return config


@breaks("CKP-EXPERTS-EACH", "refused nothing, and the output is off by", "one A taken for both halves")
class TakesTheGatesA(RightFiles):
    def tensors(self, tensors, model):
        for key in tensors if of_each(tensors) else ():
            for gate, up in (("gate_proj", "up_proj"), ("w1", "w3")):
                other = key.replace(f".{gate}.", f".{up}.")
                if "lora_A" in key and other != key and other in tensors:
                    tensors[other] = tensors[key]
        return tensors


@breaks("CKP-EXPERTS-EACH", "raised nothing: expected an error", "strict=False: what is missing stays zero")
class LeavesMissingExpertsOut(RightFiles):
    def tensors(self, tensors, model):
        keys = [m for m in (re.fullmatch(r"(.*experts)\.\d+\.(\w+)\.(.*)", key) for key in tensors) if m]
        for module, key, part in {(m[1], m[2], m[3]) for m in keys}:
            known = next(t for name, t in tensors.items() if name.endswith(f".{key}.{part}"))
            other = {"gate_proj": "up_proj", "w1": "w3"}.get(key, key)
            for name in {key, other if experts(model)[0].has_gate else key}:
                for e in range(count(model)):
                    tensors.setdefault(f"{module}.{e}.{name}.{part}", torch.zeros_like(known))
        return tensors


@breaks("CKP-EXPERTS-MISFIT", "raised nothing: expected an error", "experts beyond the model's are left out")
class TakesTheFirstExperts(RightFiles):
    def tensors(self, tensors, model):
        e = count(model)
        rank = min(t.shape[0] for key, t in tensors.items() if "lora_A" in key)
        if rank % (e + 1) or not rank % e:
            return tensors
        tensors = changed(tensors, "A", lambda A: A.unflatten(0, (e + 1, -1))[:e].flatten(0, 1))
        return changed(tensors, "B", lambda B: B.unflatten(1, (-1, e + 1))[..., :e].flatten(1))


@breaks("CKP-EXPERTS-MISFIT", "raised nothing: expected an error", "strict=False: what is missing stays zero")
class FillsMissingTensors(RightFiles):
    def tensors(self, tensors, model):
        for part in ("lora_A", "lora_B"):
            for depth in ("", "base_layer."):
                for i in range(2):
                    key, same = (f"{PREFIX}layers.{j}.mlp.experts.{depth}{part}.weight" for j in (i, 1 - i))
                    if key not in tensors and same in tensors:
                        tensors[key] = torch.zeros_like(tensors[same])
        return tensors


@breaks("CKP-EXPERTS-MISFIT", "changed", "an adapted model that a refused file leaves behind")
class AdaptsBeforeItChecks(RightFiles):
    def load_adapter(self, model, path):
        try:
            return super().load_adapter(model, path)
        except ValueError:
            values = config_in(Path(path))
            if "lora_A" not in dir(experts(model)[0]):
                config = self.PeftConfig(target_parameters=values["target_parameters"][:1])
                reference.apply_lora_to_linear_modules(model, config)
            raise
