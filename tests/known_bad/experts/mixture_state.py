"""Known-bad twins of mixture state: what adapting must keep is lost, or A is drawn wrongly, or merging is partial."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from tests.baselines.expert_modules import RightExperts, RightModules
from tests.known_bad import breaks
from tests.known_bad.experts.mixture_results import wrong


@breaks("EXP-MOD-KEPT", says="another object", source="a module that is replaced by a copy")
class ReturnsACopy(RightModules):
    def patch_moe_module(self, orig_module, *arguments, **options):
        return super().patch_moe_module(copy.deepcopy(orig_module), *arguments, **options)


@breaks("EXP-MOD-KEPT", says="the attribute alpha", source="options kept under the module's own names")
class TakesTheNameAlpha(RightModules):
    def patch_moe_module(self, *arguments, **options):
        module = super().patch_moe_module(*arguments, **options)
        module.alpha = options.get("alpha", 32)
        return module


@breaks("EXP-MOD-KEPT", says="the training flag", source="a new module in training mode")
class SetsTheTrainingMode(RightModules):
    def patch_moe_module(self, *arguments, **options):
        return super().patch_moe_module(*arguments, **options).train()


@breaks("EXP-MOD-KEPT", says="no longer the same Parameter", source="weights copied into a contiguous buffer")
class ReplacesTheWeights(RightModules):
    def patch_moe_module(self, *arguments, **options):
        module = super().patch_moe_module(*arguments, **options)
        module.down_proj = nn.Parameter(module.down_proj.detach().clone(), requires_grad=False)
        return module


@breaks("EXP-MOD-FROZEN", says="expected a frozen parameter", dtypes=("float32",), source="biases left trainable")
class LeavesBiasesTrainable(RightModules):
    def patch_moe_module(self, *arguments, **options):
        module = super().patch_moe_module(*arguments, **options)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("lora" in name or "bias" in name or not module.has_bias)
        return module


class Draws(RightExperts):
    """Adapters whose A is drawn by another rule."""

    @torch.no_grad()
    def init_lora_weights(self, init_method):
        super().init_lora_weights(init_method)
        for A in self.lora_A.values():
            self.redraw(A, init_method)

    def redraw(self, A, init_method):
        """Draw A again."""
        raise NotImplementedError


@wrong("EXP-MOD-INIT", says="has the standard deviation", dtypes=("float32",), source="NeMo 0.7.0: 3-D fans")
class DrawsByTheFansOfThreeDimensions(Draws):
    def redraw(self, A, init_method):
        if init_method == "xavier":
            nn.init.xavier_normal_(A)
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))


@wrong("EXP-MOD-INIT", says="two experts have the same", dtypes=("float32",), source="one A that is repeated")
class RepeatsTheFirstExpert(Draws):
    def redraw(self, A, init_method):
        A.copy_(A[:1].clone().expand_as(A))


@wrong("EXP-MOD-INIT", says="drawn alike", dtypes=("float32",), source="A drawn as one matrix [r·E, K], split unevenly")
class DrawsExpertsUnevenly(Draws):
    def redraw(self, A, init_method):
        A[0].mul_(1.6)
        A[1].mul_(0.1)


@breaks("EXP-MOD-RSLORA", says="worst    y", source="vllm-project/vllm #55545: rsLoRA ignored for experts")
class IgnoresRsLoRA(RightModules):
    def patch_moe_module(self, *arguments, use_rslora=False, **options):
        return super().patch_moe_module(*arguments, **options)


@wrong("EXP-MOD-MERGE", says="worst    merged", source="a merge of the first projection only")
class MergesOneProjection(RightExperts):
    @torch.no_grad()
    def merge(self):
        super().merge()
        if self.unmerged_down_proj is not None:
            self.down_proj.copy_(self.unmerged_down_proj)


@wrong("EXP-MOD-MERGE", says="merged", source="an update added as if weights were [E, out, in]")
class MergesAsIfNotTransposed(RightExperts):
    @torch.no_grad()
    def merge(self):
        if self.merged or not self.is_transposed:
            return super().merge()
        self.is_transposed = False
        try:
            return super().merge() if self.down_proj.shape[1] == self.down_proj.shape[2] else None
        except RuntimeError:
            return None
        finally:
            self.is_transposed = True


@wrong("EXP-MOD-MERGE", says="worst    y", source="a merged module that adds its adapters again")
class AddsTheAdapterTwice(RightExperts):
    def _adapter_of(self, name, weight):
        return self.lora_A[name], self.lora_B[name], self.scales[name]


@wrong("EXP-MOD-UNMERGE", says="of the state_dict of a merged module", source="a state_dict with merged weights")
class SavesMergedWeights(RightExperts):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)


@wrong("EXP-MOD-UNMERGE", says="unmerged", source="an update that is not subtracted from one projection")
class LeavesDownMerged(RightExperts):
    @torch.no_grad()
    def unmerge(self):
        merged = self.down_proj.clone()
        was = self.merged
        super().unmerge()
        if was:
            self.down_proj.copy_(merged)


@wrong("EXP-MOD-COPY", says="worst", dtypes=("float32",), source="adapters that a copy shares")
class SharesAdaptersWithCopies(RightExperts):
    def __deepcopy__(self, memo):
        for side in (self.lora_A, self.lora_B):
            for parameter in side.values():
                memo[id(parameter)] = parameter
        return copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]
