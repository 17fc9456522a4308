"""Known-bad twins of saved experts: the file has another packing, ranks, scales, halves or dtypes than the adapters."""

from __future__ import annotations

import re
import warnings

import torch

import reference
from reference.checkpoint import read_adapter
from tests.baselines.checkpoint import checkpoint_breaks as breaks
from tests.baselines.expert_files import RightFiles, count, experts
from tests.known_bad.checkpoint.expert_files import changed

EXACT = {"dtypes": ("float64",)}


@breaks("CKP-EXPERTS-LAYOUT", says="has other values than the adapters", source="unslothai/unsloth-zoo #1269")
class PacksBExpertByExpert(RightFiles):
    def written(self, tensors, model):
        e = count(model)
        return changed(tensors, "B", lambda B: B.unflatten(1, (-1, e)).mT.flatten(1))


@breaks("CKP-EXPERTS-LAYOUT", says="expected", source="the projection registered first taken for the outermost")
class NestsTheFirstOutermost(RightFiles):
    def written(self, tensors, model):
        inner, outer = ".experts.base_layer.lora_", ".experts.lora_"
        if not any(inner in key for key in tensors):
            return tensors
        swap = {inner: outer, outer: inner}
        return {re.sub("|".join(map(re.escape, swap)), lambda m: swap[m[0]], key): t for key, t in tensors.items()}


@breaks("CKP-EXPERTS-LAYOUT", says="target_parameters =", source="a config that names no parameters")
class NamesNoParameters(RightFiles):
    def written_values(self, values, config):
        return values | {"target_parameters": None}


@breaks("CKP-EXPERTS-LAYOUT", says="has lora_dropout", source="a dropout that PEFT refuses for parameters")
class WritesTheDropout(RightFiles):
    def written_values(self, values, config):
        return values | {"lora_dropout": config.dropout}


@breaks("CKP-EXPERTS-LAYOUT", says="gave no warning")
class LeavesDropoutOutSilently(RightFiles):
    def save_adapter(self, model, config, path, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().save_adapter(model, config, path, **options)


@breaks("CKP-EXPERTS-LAYOUT", says="is torch.float32", dtypes=("bfloat16",), source="tensors saved in float32")
class SavesInFloat32(RightFiles):
    def written(self, tensors, model):
        return {key: tensor.float() for key, tensor in tensors.items()}


@breaks(
    "CKP-EXPERTS-RANK",
    says="gives layers.",
    source="NVIDIA-NeMo/Automodel 0.7.0",
    **EXACT,
)
class WritesTheRankBeforeTheDivision(RightFiles):
    def written_values(self, values, config):
        return values | {"rank_pattern": config.rank_pattern}


@breaks("CKP-EXPERTS-RANK", says="the output with the scale of the file", source="alpha scaled with the rank", **EXACT)
class ScalesAlphaInTheFile(RightFiles):
    def written_values(self, values, config):
        return values | {"lora_alpha": values["lora_alpha"] / 2}


@breaks("CKP-EXPERTS-RANK", says="gives layers.", source="a pattern that sorts before the exact one", **EXACT)
class LetsAPatternWin(RightFiles):
    def written_values(self, values, config):
        return values | {"rank_pattern": dict(sorted((values["rank_pattern"] | config.rank_pattern).items()))}


@breaks("CKP-EXPERTS-ROUND-TRIP", says="is not what was saved", source="a second module that keeps its adapter")
class LoadsTheFirstModule(RightFiles):
    def loaded(self, model, folder):
        last = experts(model)[-1]
        kept = {name: B.detach().clone() for name, B in last.lora_B.items()}
        config = super().loaded(model, folder)
        with torch.no_grad():
            for name, B in kept.items():
                last.lora_B[name].copy_(B)
        return config


@breaks("CKP-EXPERTS-ROUND-TRIP", says="the output is not that of", source="the scale kept from another file")
class DoublesTheScale(RightFiles):
    def loaded(self, model, folder):
        config = super().loaded(model, folder)
        for module in experts(model):
            module.scales = {name: 2 * scale for name, scale in module.scales.items()}
        return config


@breaks("CKP-EXPERTS-KEYS", says="has other values than", source="NVIDIA-NeMo/Megatron-Bridge #5376")
class SavesInterleavedHalvesAsConcatenated(RightFiles):
    def save_adapter(self, model, config, path, **options):
        own = [module for module in experts(model) if not module.is_concatenated]
        for module in own:
            module.is_concatenated = True
        try:
            reference.save_adapter(model, config, path, **options)
        finally:
            for module in own:
                module.is_concatenated = False


@breaks("CKP-EXPERTS-KEYS", says="has other values than", source="w1 and w3 exchanged")
class ExchangesGateAndUp(RightFiles):
    def written(self, tensors, model):
        if not experts(model)[0].has_gate:
            return tensors
        swap = {"w1": "w3", "w3": "w1", "gate_proj": "up_proj", "up_proj": "gate_proj"}
        return {re.sub(rf"\b({'|'.join(swap)})\b", lambda m: swap[m[0]], key): t for key, t in tensors.items()}


@breaks("CKP-EXPERTS-KEYS", says="lacks base_model.model.", source="one A for gate and up, under the gate's key alone")
class WritesTheSharedAOnce(RightFiles):
    def written(self, tensors, model):
        return {key: t for key, t in tensors.items() if not re.search(r"\.(up_proj|w3)\.lora_A", key)}


@breaks("CKP-EXPERTS-MERGED", says="off by", source="weights that stay merged while the adapter is replaced", **EXACT)
class LoadsIntoMergedWeights(RightFiles):
    def loaded(self, model, folder):
        kept = [(m, n, getattr(m, n).detach().clone()) for m in experts(model) if m.merged for n in m.lora_A]
        config = super().loaded(model, folder)
        with torch.no_grad():
            for module, name, weight in kept:
                getattr(module, name).copy_(weight)
        return config


@breaks("CKP-EXPERTS-MERGED", says="off by", source="a merged module saved as if it had no adapter", **EXACT)
class SavesMergedAdaptersAsZeros(RightFiles):
    def written(self, tensors, model):
        return changed(tensors, "B", torch.zeros_like) if any(m.merged for m in experts(model)) else tensors


class MergesInBfloat16(reference.GroupedExpertsLoRA):
    """Experts whose merge rounds the weights of one projection to bfloat16."""

    @torch.no_grad()
    def merge(self):
        super().merge()
        self.down_proj.copy_(self.down_proj.bfloat16())


@breaks("CKP-EXPERTS-MERGED", says="after loading and merging", source="a merge in bfloat16", **EXACT)
class RoundsMergedWeights(RightFiles):
    kind = MergesInBfloat16

    def loaded(self, model, folder):
        return read_adapter(model, folder, reference.patch_linear_module, kind=self.kind)
