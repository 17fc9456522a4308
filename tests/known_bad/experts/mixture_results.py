"""Known-bad twins of mixture results: layouts, gates, slots, router weights and idle experts are confused."""

from __future__ import annotations

import torch

from reference.experts_module import weight_of
from tests.baselines.expert_modules import RightExperts, RightModules
from tests.known_bad import breaks


def target(kind: type) -> type:
    """A class of targets whose adapted modules have this class; twins are registered by the name of the class."""
    return type(kind.__name__, (RightModules,), {"kind": kind, "__module__": kind.__module__})


def wrong(*clauses: str, **options):
    """Register a class of adapted modules with one defect."""

    def register(kind: type) -> type:
        breaks(*clauses, **options)(target(kind))
        return kind

    return register


@wrong("EXP-MOD-FWD", says="worst    y", source="Megatron-Bridge #5376: interleaved and concatenated confused")
class SplitsTheGateInHalves(RightExperts):
    def _apply_gate(self, gate_up):
        if self.is_concatenated:
            return super()._apply_gate(gate_up)
        return super()._apply_gate(torch.stack(gate_up.chunk(2, dim=-1), dim=-1).flatten(-2))


@wrong("EXP-MOD-FWD", says="worst    y", source="Megatron-Bridge #5376: B's rows de-interleaved, the weight's not")
class OrdersTheRowsOfBByHalves(RightExperts):
    def _adapter_of(self, name, weight):
        A, B, scale = super()._adapter_of(name, weight)
        if name == "gate_up_proj" and not self.is_concatenated and B.shape[2]:
            B = torch.stack(B.chunk(2, dim=1), dim=2).flatten(1, 2)
        return A, B, scale


@wrong("EXP-MOD-FWD", says="down_proj adapter term", source="unslothai/unsloth #11014, NeMo #3284: one projection only")
class AdaptsTheFirstProjectionOnly(RightExperts):
    def _adapter_of(self, name, weight):
        A, B, scale = super()._adapter_of(name, weight)
        return A, B * 0 if name == "down_proj" else B, scale


@wrong("EXP-MOD-FWD", says="worst    y", source="unslothai/unsloth-zoo #849, #913: the orientation guessed by shape")
class GuessesTheOrientationByShape(RightExperts):
    def project(self, rows, index, name):
        weight = getattr(self, name)
        stored, self.is_transposed = self.is_transposed, weight.shape[1] == rows.shape[1]
        try:
            return super().project(rows, index, name)
        except ValueError:
            self.is_transposed = stored
            return super().project(rows, index, name)
        finally:
            self.is_transposed = stored


@wrong("EXP-MOD-FWD", says="worst    y", source="a router's weight that multiplies the tokens")
class WeighsTheTokens(RightExperts):
    def per_slot(self, y, p, present):
        self.slots = p
        return super().per_slot(y, torch.ones_like(p), present)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        self.p = torch.nan_to_num(top_k_weights.reshape(-1, 1))
        return super().forward(hidden_states, top_k_index, top_k_weights)

    def of_rows(self, rows, index):
        return super().of_rows(rows * self.p, index)


@wrong("EXP-MOD-FWD", says="worst    y", source="an attribute of the adapter that takes the module's own name")
class OverwritesTheAlphaOfTheGate(RightExperts):
    def _apply_gate(self, gate_up):
        self.alpha = 32
        return super()._apply_gate(gate_up)


@wrong("EXP-MOD-BWD", says="dA of", source="the gradients of both projections' adapters, one scale forgotten")
class ScalesOnlyTheOutput(RightExperts):
    def _adapter_of(self, name, weight):
        A, B, scale = super()._adapter_of(name, weight)
        return (A / scale).detach() * scale + (A - A.detach()) * 2, B, scale


@wrong("EXP-MOD-BWD", says="dX", source="tokens detached before they are gathered")
class DetachesTheTokensOfLaterSlots(RightExperts):
    def of_rows(self, rows, index):
        later = torch.arange(len(rows)).unsqueeze(1) % 2 == 1
        return super().of_rows(torch.where(later, rows.detach(), rows), index)


@wrong("EXP-MOD-DP", says="dp", source="the router's gradient from the frozen experts")
class ForgetsTheAdapterInDP(RightExperts):
    def per_slot(self, y, p, present):
        kept = super().per_slot(y, p.detach(), present)
        return kept + super().per_slot(y.detach() * 0.5, p - p.detach(), present)


@wrong("EXP-MOD-DP", says="dp is None", source="router weights that are detached")
class DetachesTheRouter(RightExperts):
    def per_slot(self, y, p, present):
        return super().per_slot(y, p.detach(), present)


@wrong(
    "EXP-MOD-ABSENT",
    says="y of a token without experts",
    source="sgl-project/sglang #24171: index -1 wraps to the last expert",
)
class WrapsTheIndexOfASlot(RightExperts):
    def routed(self, index):
        return torch.where(index == -1, self.num_experts - 1, index)

    def per_slot(self, y, p, present):
        return super().per_slot(y, torch.nan_to_num(p, nan=0.5), present)


@wrong("EXP-MOD-ABSENT", says="of a token without experts is not 0", source="a weight of NaN times zero")
class MultipliesAbsentSlots(RightExperts):
    def per_slot(self, y, p, present):
        return torch.where(present, y, 0.0).to(torch.promote_types(y.dtype, torch.float32)) * p


@wrong("EXP-MOD-DUPLICATE", says="worst    y", source="a one-hot mask of the experts, without their number")
class CountsAnExpertOnce(RightExperts):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        index = top_k_index.clone()
        for slot in range(1, index.shape[1]):
            again = (index[:, :slot] == index[:, slot : slot + 1]).any(1)
            index[again, slot] = -1
        return super().forward(hidden_states, index, top_k_weights)


@wrong("EXP-MOD-IDLE", says="expected zeros for idle experts", source="adapters that only busy experts touch")
class LeavesIdleAdaptersOut(RightExperts):
    def project(self, rows, index, name):
        if not bool(((index >= 0) & (index < self.num_experts)).any()):
            return rows.new_zeros(len(rows), weight_of(self, name).shape[1]) + rows.sum() * 0
        return super().project(rows, index, name)


@wrong("EXP-MOD-MIXED", says="dtype", source="an output in the dtype of the adapter")
class ReturnsTheDtypeOfTheAdapter(RightExperts):
    def weighed(self, summands, hidden):
        return super().weighed(summands, hidden).to(self.lora_A["down_proj"].dtype)


@wrong("EXP-MOD-FRESH", says="lora_B of")
class DrawsB(RightExperts):
    @torch.no_grad()
    def init_lora_weights(self, init_method):
        super().init_lora_weights(init_method)
        for B in self.lora_B.values():
            torch.nn.init.normal_(B, std=0.01)


@wrong("EXP-MOD-FRESH-BITS", says="differs from that of the module before", dtypes=("float32",))
class SumsInFloat64(RightExperts):
    def per_slot(self, y, p, present):
        return super().per_slot(y, p, present) * (1 + 2**-23)


@breaks("EXP-MOD-PROJECTIONS", says="worst    y", source="an option that is ignored")
class AdaptsEveryProjection(RightModules):
    def patch_moe_module(self, *arguments, projections=None, **options):
        module = super().patch_moe_module(*arguments, **options)
        for B in module.lora_B.values():
            torch.nn.init.ones_(B)
        return module


@breaks("EXP-MOD-DROP-ALL", says="has a gradient", source="dropout that experts ignore")
class IgnoresTheDropoutOfExperts(RightModules):
    def patch_moe_module(self, *arguments, dropout=0.0, **options):
        return super().patch_moe_module(*arguments, **options)


@wrong("EXP-MOD-DROP-EVAL", says="worst", source="dropout that does not follow the mode")
class DropsInEvalMode(RightExperts):
    def project(self, rows, index, name):
        mode, self.training = self.training, True
        try:
            return super().project(rows, index, name)
        finally:
            self.training = mode
