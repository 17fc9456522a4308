"""Known-bad twins of group `training`: `replace_layers_with_custom`."""

from __future__ import annotations

import warnings

from torch import nn

import reference
from tests.baselines.training import Replacing
from tests.baselines.training import replacing_breaks as breaks


@breaks("TRN-REP-WHOLE", says="did not replace", source="zama-ai/concrete-ml HEAD: `lora` anywhere in a name (HY1)")
class SearchesForLoraAnywhere(Replacing):
    def is_adapter(self, name, module):
        return "lora" in name or super().is_adapter(name, module)


@breaks("TRN-REP-ALL", says="did not replace")
class LeavesTheHeadAlone(Replacing):
    def is_eligible(self, name, module):
        return "lm_head" not in name.split(".") and super().is_eligible(name, module)


@breaks("TRN-REP-ALL", says="did not replace")
class SeesTheTopLevelOnly(Replacing):
    def walk(self, model):
        return model.named_children()


@breaks("TRN-REP-FIRST", says="did not replace")
class SkipsTheFirstTwo(Replacing):
    def run(self, model, skip_first):
        chosen = list(self.chosen(model).items())
        for module, names in chosen[2 if skip_first else 0 :]:
            self.put(model, module, names)


@breaks("TRN-REP-FIRST", says="replaced")
class SkipsNothing(Replacing):
    def run(self, model, _skip_first):
        super().run(model, False)


@breaks("TRN-REP-FIRST", says="did not replace")
class SkipsTheLast(Replacing):
    def chosen(self, model):
        return dict(reversed(super().chosen(model).items()))


@breaks("TRN-REP-FIRST-LAYER", says="replaced wrapped.base_layer")
class CountsPlainLayersOnly(Replacing):
    def run(self, model, skip_first):
        chosen = self.chosen(model)
        plain = [m for m in chosen if not isinstance(m, reference.LinearLoRA)]
        for module, names in chosen.items():
            if not skip_first or module is not plain[0]:
                self.warn(module, names[0])
                self.put(model, module, names)


@breaks("TRN-REP-ADAPTERS", says="is part of an adapter and was replaced")
class KnowsOnlyAAndB(Replacing):
    def is_adapter(self, name, _module):
        return not {"lora_A", "lora_B"}.isdisjoint(name.split("."))


@breaks("TRN-REP-ADAPTERS", says="is part of an adapter and was replaced")
class LooksAtTheLastComponentOnly(Replacing):
    def is_adapter(self, name, module):
        return super().is_adapter(name.rpartition(".")[2], module)


@breaks("TRN-REP-CONV1D", says="did not replace block.c_attn")
class DoesNotKnowConv1D(Replacing):
    def is_eligible(self, name, module):
        return type(module).__name__ != "Conv1D" and super().is_eligible(name, module)


@breaks("TRN-REP-CONV1D", says="raised ValueError")
class TakesConv1DForLinear(Replacing):
    def custom(self, module):
        return self.kept(module, reference.CustomLinear(module.weight, module.bias, False))


@breaks("TRN-REP-SUBCLASS", says="replaced block.doubled.fc")
class ReplacesSubclasses(Replacing):
    def is_eligible(self, name, module):
        return isinstance(module, nn.Linear) or super().is_eligible(name, module)


@breaks("TRN-REP-SUBCLASS", says="gave no warning that names it")
class PassesSubclassesOverInSilence(Replacing):
    def warn_subclass(self, name, module):
        pass


@breaks("TRN-REP-SHARED", says="were one module and are two")
class ReplacesSharedLayersTwice(Replacing):
    def put(self, model, module, names):
        for name in names:
            super().put(model, module, [name])


@breaks("TRN-REP-SHARED", says="did not replace")
class ReplacesUnderOneName(Replacing):
    def put(self, model, module, names):
        super().put(model, module, names[:1])


@breaks("TRN-REP-SHARED-FIRST", says="replace_layers_with_custom")
class SkipsOneNameOfTwo(Replacing):
    def run(self, model, skip_first):
        named = [(m, n) for m, names in self.chosen(model).items() for n in names]
        for module, name in named[1 if skip_first else 0 :]:
            self.put(model, module, [name])


@breaks("TRN-REP-BIAS", says="gave no warning naming it")
class LosesTheBiasInSilence(Replacing):
    def warn(self, module, name):
        pass


@breaks("TRN-REP-BIAS", says="gave no warning naming it")
class WarnsWithoutAName(Replacing):
    def warn(self, module, _name):
        super().warn(module, "a layer")


@breaks("TRN-REP-BIAS", says="of frozen layers warned")
class WarnsOfEveryBias(Replacing):
    def warn(self, module, name):
        if module.bias is not None:
            warnings.warn(f"{name}: its bias gets no gradient", stacklevel=2)


@breaks("TRN-REP-NOTHING", says="exchanged")
class ReplacesNormsToo(Replacing):
    def put(self, model, module, names):
        if isinstance(module, nn.LayerNorm):
            model.norm = nn.Identity()
        else:
            super().put(model, module, names)

    def run(self, model, skip_first):
        super().run(model, skip_first)
        if hasattr(model, "norm"):
            self.put(model, model.norm, ["norm"])


@breaks("TRN-REP-SAME", says="as if the bias term were missing", dtypes=("float32", "bfloat16"))
class DropsTheBias(Replacing):
    def custom(self, module):
        transposed = type(module).__name__ == "Conv1D"
        return self.kept(module, reference.CustomLinear(module.weight, None, transposed))


class Detached(reference.CustomLinear):
    """A layer whose input is detached, as an early remote module's was."""

    def forward(self, input_tensor):
        return super().forward(input_tensor.detach()) + input_tensor.sum() * 0


@breaks("TRN-REP-SAME", says="zeros", dtypes=("float32", "bfloat16"), source="zama-ai/concrete-ml #765 (GR2)")
class DetachesTheInput(Replacing):
    def custom(self, module):
        transposed = type(module).__name__ == "Conv1D"
        return self.kept(module, Detached(module.weight, module.bias, transposed))


@breaks("TRN-REP-TENSORS", says="holds another weight")
class CopiesTheWeight(Replacing):
    def custom(self, module):
        transposed = type(module).__name__ == "Conv1D"
        return self.kept(module, reference.CustomLinear(module.weight.detach().clone(), module.bias, transposed))


@breaks("TRN-REP-TENSORS", says="tensors")
class KeepsTheOldLayerInside(Replacing):
    def custom(self, module):
        custom = super().custom(module)
        if not isinstance(module, reference.LinearLoRA):
            custom.original = module
        return custom


@breaks("TRN-REP-HOOKS", says="was called 0 times")
class LosesHooks(Replacing):
    def kept(self, module, custom):
        return custom.train(module.training)


@breaks("TRN-REP-MODE", says=".training is True")
class PutsEverythingInTrainingMode(Replacing):
    def kept(self, module, custom):
        return super().kept(module, custom).train(True)


@breaks("TRN-REP-LAYER", says="LinearLoRA.base_layer is a NoneType", dtypes=("float32", "bfloat16"))
class PassesLoraLayersOver(Replacing):
    def is_eligible(self, name, module):
        return not isinstance(module, reference.LinearLoRA) and super().is_eligible(name, module)


@breaks("TRN-REP-LAYER", says="was exchanged", dtypes=("float32", "bfloat16"))
class ReplacesWholeLoraLayers(Replacing):
    def put(self, model, module, names):
        if isinstance(module, reference.LinearLoRA):
            model[1] = reference.CustomLinear(module.weight, module.bias)
        else:
            super().put(model, module, names)


@breaks("TRN-REP-LAYER-DORA", says="worst    y", dtypes=("float64", "float32"))
class ForgetsTheBiasOfDora(Replacing):
    def put(self, model, module, names):
        if getattr(module, "use_dora", False) or getattr(module, "lora_magnitude", None) is not None:
            module.base_layer = reference.CustomLinear(module.weight, None)
        else:
            super().put(model, module, names)


@breaks("TRN-REP-LAYER-DORA", says="raised NotImplementedError", dtypes=("float64", "float32"))
class CannotReplaceDora(Replacing):
    def put(self, model, module, names):
        super().put(model, module, names)
        if getattr(module, "lora_magnitude", None) is not None:
            module.base_layer.forward_module.forward = _refuse


def _refuse(_x):
    raise NotImplementedError("no remote product for DoRA")


class Untied(reference.CustomLinear):
    """A base layer that keeps the tensors it was made with."""

    def tie(self, weight, bias):
        pass


@breaks("TRN-REP-LAYER-LOADED", says="worst    y")
class KeepsTheTensorsItWasMadeWith(Replacing):
    def custom(self, module):
        if isinstance(module, reference.LinearLoRA):
            untied = Untied(module.weight, module.bias)
            untied.owned_by_parent = True  # so that the state_dict holds each tensor once
            return untied
        return super().custom(module)


@breaks("TRN-REP-LAST", says="is off by", dtypes=("float64",))
class RoundsGradientsToFloat32(Replacing):
    def custom(self, module):
        custom = super().custom(module)
        custom.backward_module.register_forward_hook(lambda _m, _args, g: g.float().to(g.dtype))
        return custom


@breaks("TRN-REP-HOOKS", says="was called 0 times")
class LosesBackwardPreHooks(Replacing):
    def kept(self, module, custom):
        custom = super().kept(module, custom)
        custom._backward_pre_hooks = type(custom._backward_pre_hooks)()
        return custom


@breaks("TRN-REP-WHOLE", says="did not replace")
class LooksAtTheEndOfComponents(Replacing):
    def is_adapter(self, name, module):
        ends = any(part.endswith(("lora_A", "lora_B")) for part in name.split("."))
        return ends or super().is_adapter(name, module)
