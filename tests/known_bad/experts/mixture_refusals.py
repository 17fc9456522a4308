"""Known-bad twins of mixture refusals: what cannot be adapted is adapted, or changed before it is refused."""

from __future__ import annotations

from reference.experts_module import check_experts
from tests.baselines.expert_modules import RightModules
from tests.known_bad import breaks

ONE = ("float32",)


@breaks("EXP-MOD-UNFIT", says="does not say how", dtypes=ONE, source="unslothai/unsloth-zoo #849")
class AssumesAnOrientation(RightModules):
    def refuse(self, module):
        if getattr(module, "is_transposed", None) is None:
            module.is_transposed = False
        super().refuse(module)


@breaks("EXP-MOD-UNFIT", says="has a forward without indices", dtypes=ONE, source="Llama 4's experts")
class IgnoresTheForward(RightModules):
    def refuse(self, module):
        if hasattr(module, "down_proj") and module.down_proj.is_floating_point() and module.is_transposed is not None:
            return
        super().refuse(module)


@breaks("EXP-MOD-UNFIT", says="was frozen although", dtypes=ONE, source="weights frozen before the checks")
class FreezesBeforeItRefuses(RightModules):
    def refuse(self, module):
        module.requires_grad_(False)
        super().refuse(module)


@breaks("EXP-MOD-OPTIONS", says="expected an error", dtypes=ONE, source="names that are not looked up")
class IgnoresUnknownProjections(RightModules):
    def patch_moe_module(self, orig_module, *arguments, projections=None, **options):
        return super().patch_moe_module(orig_module, *arguments, **options)


@breaks("EXP-MOD-OPTIONS", says="expected an error", dtypes=ONE, source="a probability that is clamped")
class ClampsDropout(RightModules):
    def patch_moe_module(self, orig_module, *arguments, dropout=0.0, **options):
        return super().patch_moe_module(orig_module, *arguments, dropout=min(dropout, 1.0), **options)


@breaks("EXP-MOD-TWICE", says="already has adapters", dtypes=ONE, source="NeMo: a second patch discards the first")
class DiscardsTheFirstAdapter(RightModules):
    def refuse(self, module):
        if hasattr(module, "lora_A"):
            module.__class__ = module.original_class
            del module.lora_A, module.lora_B
            for name in list(module._buffers):
                del module._buffers[name]
        check_experts(module)
