"""Known-bad twins of replace layers: `replace_layers_with_custom` replaces the wrong layers."""

from __future__ import annotations

import warnings

from torch import nn

import reference
from tests.baselines.training import Replacing, trainer_breaks
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


@breaks("TRN-REP-WHOLE", says="did not replace")
class LooksAtTheEndOfComponents(Replacing):
    def is_adapter(self, name, module):
        ends = any(part.endswith(("lora_A", "lora_B")) for part in name.split("."))
        return ends or super().is_adapter(name, module)


@trainer_breaks("TRN-REP-SKIPPED", says="did not replace")
class SkipsOneMore(reference.LoraTraining):
    def __init__(self, inference_model, *, loss_fn=None, n_layers_to_skip_for_backprop=1):
        more = n_layers_to_skip_for_backprop
        more += type(more) is int and more > 1
        super().__init__(inference_model, loss_fn=loss_fn, n_layers_to_skip_for_backprop=more)


@trainer_breaks("TRN-REP-SKIPPED", says="replaced")
class SkipsAtMostOne(reference.LoraTraining):
    def __init__(self, inference_model, *, loss_fn=None, n_layers_to_skip_for_backprop=1):
        skipped = n_layers_to_skip_for_backprop
        fewer = min(skipped, 1) if type(skipped) is int else skipped
        super().__init__(inference_model, loss_fn=loss_fn, n_layers_to_skip_for_backprop=fewer)


@trainer_breaks("TRN-REP-SKIPPED", says="expected ValueError")
class SkipsANegativeNumber(reference.LoraTraining):
    def __init__(self, inference_model, *, loss_fn=None, n_layers_to_skip_for_backprop=1):
        skipped = n_layers_to_skip_for_backprop
        number = max(0, int(skipped)) if isinstance(skipped, int | float) else skipped
        super().__init__(inference_model, loss_fn=loss_fn, n_layers_to_skip_for_backprop=number)
