"""Known-bad twins of preserved module: a patch loses the object, its class, names, values, flags, hooks or ties."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

import reference
from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import HALF, MODEL, AfterPatching, ChangesOptions


@breaks("MOD-SAME-OBJECT", says="returned another", **MODEL)
class PatchesACopy(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        return super().patch_linear_module(copy.deepcopy(orig_linear), *arguments, **options)


@breaks("MOD-SAME-OBJECT", says="an own attribute are", **MODEL)
class ForgetsAttributes(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.__dict__.pop("note", None)


@breaks("MOD-IS-LORA", says="no instance of LinearLoRA", **MODEL)
class ReplacesForwardOnly(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        lora = type(layer)
        layer.__class__ = nn.Linear
        layer.forward = lambda x: reference.lora_linear(
            x, layer.weight, layer.bias, layer.lora_A.weight, layer.lora_B.weight, layer.scale
        )
        assert lora is not nn.Linear


@breaks("MOD-IS-LORA", says="no instance of LinearLoRA", **MODEL)
class HasAnotherClassForTriton(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        layer = super().patch_linear_module(orig_linear, *arguments, **options)
        if options.get("use_triton"):
            layer.__class__ = type("TritonLayer", (nn.Linear,), {"forward": reference.LinearLoRA.__dict__["forward"]})
        return layer


@breaks("MOD-SUBCLASS", says="no TaggedLinear", source="orig.__class__ set to a new class", **MODEL)
class DropsTheSubclass(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.__class__ = reference.TritonLinearLoRA if options.get("use_triton", True) else reference.LinearLoRA


@breaks("MOD-NAMES", says="state_dict keys added by patching", **MODEL)
class SavesTheScale(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.register_buffer("lora_scale", torch.tensor(layer.scale))


@breaks("MOD-NAMES", says="parameters lost by patching: 0.bias", **MODEL)
class TurnsTheBiasIntoABuffer(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        bias = layer.bias
        if bias is not None:
            del layer.bias
            layer.register_buffer("bias", bias.detach())


@breaks("MOD-WEIGHTS", says="weight is torch.float32 after patching", **HALF)
class UpcastsTheWeight(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.weight = nn.Parameter(layer.weight.detach().float(), requires_grad=False)


@breaks("MOD-WEIGHTS", says="the values of weight changed", **MODEL)
class InitialisesTheWeightAgain(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        nn.Linear.reset_parameters(layer)


@breaks("MOD-ADAPTER-PLACE", says="lora_A.weight is torch.float32: expected torch.bfloat16", **HALF)
class KeepsAdaptersInFloat32(ChangesOptions):
    def changed(self, options: Any) -> Any:
        return {**options, "lora_dtype": options.get("lora_dtype") or torch.float32}


@breaks("MOD-LORA-DTYPE", says="raised AttributeError", source="NVIDIA-NeMo/Automodel #173 (CF2)", **MODEL)
class LooksUpTheWholeString(ChangesOptions):
    def changed(self, options: Any) -> Any:
        dtype = options.get("lora_dtype")
        return {**options, "lora_dtype": getattr(torch, dtype) if isinstance(dtype, str) else dtype}


@breaks("MOD-LORA-DTYPE", says="lora_A.weight is torch.float32", **MODEL)
class IgnoresLoraDtype(ChangesOptions):
    def changed(self, options: Any) -> Any:
        return {**options, "lora_dtype": None}


@breaks("MOD-LORA-DTYPE", says="weight became", **MODEL)
class CastsTheWholeLayer(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.to(layer.lora_A.weight.dtype)


@breaks("MOD-TRAINING-FLAG", says="it has training=True", **MODEL)
class SwitchesToTraining(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.train()


@breaks("MOD-TRAINING-FLAG", says="lora_A has training=True", **MODEL)
class LeavesNewModulesInTraining(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.lora_A.train()
        layer.lora_B.train()


@breaks("MOD-FROZEN", says="trainable after patching: bias", **MODEL)
class LeavesTheBiasTrainable(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        if layer.bias is not None:
            layer.bias.requires_grad_(True)


@breaks("MOD-FROZEN", says="expected lora_A.weight, lora_B.weight", **MODEL)
class FreezesLoraA(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.lora_A.weight.requires_grad_(False)


@breaks("MOD-HOOKS", says="the forward pre hook ran 0 times", **MODEL)
class LosesForwardPreHooks(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer._forward_pre_hooks = OrderedDict()


@breaks("MOD-HOOKS", says="the state_dict hook ran 0 times", **MODEL)
class LosesStateDictHooks(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer._state_dict_hooks = OrderedDict()


@breaks("MOD-HOOKS", says="the forward hook ran 2 times", **MODEL)
class CallsItselfForTheBase(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        for hook in list(layer._forward_hooks.values()):
            layer.register_forward_hook(hook)


@breaks("MOD-TIED", says="its ties are lost", **MODEL)
class ClonesTheWeight(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


class _Positional(RightModel):
    def patch_linear_module(  # type: ignore[override]
        self,
        orig_linear: Any,
        dim: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        *rest: Any,
        **options: Any,
    ) -> Any:
        return super().patch_linear_module(orig_linear, dim, alpha, dropout, *rest, **options)


@breaks("MOD-SIGNATURE", says="worst    y[", **MODEL)
class DefaultsToAlphaSixteen(_Positional):
    pass


@breaks("MOD-SIGNATURE", says="raised ValueError", **MODEL)
class TakesThePositionBeforeTheRate(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        swapped = [*arguments[:2], *reversed(arguments[2:4]), *arguments[4:]]
        return super().patch_linear_module(orig_linear, *swapped, **options)


@breaks("MOD-SIGNATURE", says="expected use_triton=True", **MODEL)
class DoesNotDefaultToTriton(RightModel):
    def patch_linear_module(  # type: ignore[override]
        self, orig_linear: Any, dim: int = 8, alpha: float = 32, dropout: float = 0.0,
        dropout_position: str = "post", lora_A_init_method: str = "xavier", lora_dtype: Any = None,
        use_triton: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        return super().patch_linear_module(
            orig_linear,
            dim,
            alpha,
            dropout,
            dropout_position,
            lora_A_init_method,
            lora_dtype,
            use_triton,
            **options,
        )


@breaks("MOD-HOOKS", says="the backward pre hook ran 0 times", **MODEL)
class LosesBackwardPreHooks(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer._backward_pre_hooks = OrderedDict()


@breaks("MOD-HOOKS", says="the keywords hook ran 0 times", **MODEL)
class ForgetsWhichHooksTakeKeywords(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer._forward_hooks_with_kwargs = OrderedDict()


@breaks("MOD-FROZEN", says="trainable after patching a frozen layer: ", **MODEL)
class FreezesAdaptersOfFrozenLayers(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        frozen = isinstance(orig_linear, nn.Linear) and not orig_linear.weight.requires_grad
        layer = super().patch_linear_module(orig_linear, *arguments, **options)
        if frozen:
            layer.lora_A.weight.requires_grad_(False)
        return layer
