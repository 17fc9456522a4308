"""Known-bad twins of replaced state: a replaced layer loses outputs, gradients, hooks, Parameters or its adapter."""

from __future__ import annotations

import reference
from tests.baselines.training import Replacing
from tests.baselines.training import replacing_breaks as breaks


@breaks("TRN-REP-SAME", says="as if the bias term were missing", dtypes=("float32", "bfloat16"))
class DropsTheBias(Replacing):
    def custom(self, module):
        transposed = type(module).__name__ == "Conv1D"
        return self.kept(module, reference.CustomLinear(module.weight, None, transposed))


class Detached(reference.CustomLinear):
    """A layer that detaches its input, as early remote modules did."""

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


def _refuse(_x):
    raise NotImplementedError("no remote product for DoRA")


@breaks("TRN-REP-LAYER-DORA", says="raised NotImplementedError", dtypes=("float64", "float32"))
class CannotReplaceDora(Replacing):
    def put(self, model, module, names):
        super().put(model, module, names)
        if getattr(module, "lora_magnitude", None) is not None:
            module.base_layer.forward_module.forward = _refuse


class Untied(reference.CustomLinear):
    """A base layer that keeps the tensors from its construction."""

    def tie(self, weight, bias):
        pass


@breaks("TRN-REP-LAYER-LOADED", says="worst    y")
class KeepsTheTensorsItWasMadeWith(Replacing):
    def custom(self, module):
        if isinstance(module, reference.LinearLoRA):
            untied = Untied(module.weight, module.bias)
            untied.owned_by_parent = True  # otherwise the state_dict would hold each tensor twice
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
