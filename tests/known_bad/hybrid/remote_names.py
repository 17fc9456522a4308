"""Known-bad twins of remote names: `get_remote_names` returns too many names, or too few."""

from __future__ import annotations

import warnings

from torch import nn

import reference
from tests.baselines.hybrid import Right
from tests.known_bad import breaks

CONCRETE = "zama-ai/concrete-ml HEAD 1c356a957 lora.get_remote_names (HY1)"


@breaks("HYB-NAMES-WHOLE", says="leaves out", source=CONCRETE)
class SearchesForLoraAnywhere(Right):
    def is_adapter(self, name, module):
        return "lora" in name or super().is_adapter(name, module)


@breaks("HYB-NAMES-WHOLE", says="leaves out")
class TakesAnyComponentThatStartsWithLora(Right):
    def is_adapter(self, name, _module):
        return any(component.startswith("lora_") for component in name.split("."))


@breaks("HYB-NAMES", says="wrongly has")
class LooksAtTheLastComponentOnly(Right):
    def is_adapter(self, name, module):
        return super().is_adapter(name.rpartition(".")[2], module)


@breaks("HYB-NAMES", says="wrongly has", phrase="knows only lora_A and lora_B")
class KnowsOnlyAAndB(Right):
    def is_adapter(self, name, _module):
        return not {"lora_A", "lora_B"}.isdisjoint(name.split("."))


@breaks("HYB-NAMES", says="repeats")
class NamesLayersTwice(Right):
    def names_of(self, name, module, embeddings):
        return super().names_of(name, module, embeddings) * 2


@breaks("HYB-NAMES-KINDS", says="wrongly has")
class TakesEveryLayerWithAWeight(Right):
    def is_linear(self, module):
        return super().is_linear(module) or isinstance(module, nn.LayerNorm | nn.Conv1d)


@breaks("HYB-NAMES-CUSTOM", says="leaves out")
class NamesTheWholeCustomLayer(Right):
    def names_of(self, name, module, embeddings):
        names = super().names_of(name, module, embeddings)
        return names if len(names) < 2 else [name]


@breaks("HYB-NAMES-CUSTOM", says="leaves out")
class ForgetsTheBackwardModule(Right):
    def names_of(self, name, module, embeddings):
        return super().names_of(name, module, embeddings)[:1]


@breaks("HYB-NAMES-WHOLE", says="leaves out", source=CONCRETE)
class SearchesForTheHeadAnywhere(Right):
    def is_head(self, name):
        return "lm_head" in name


@breaks("HYB-NAMES-HEAD", says="wrongly has")
class AlwaysTakesTheHead(Right):
    def is_head(self, _name):
        return False


@breaks("HYB-NAMES-HEAD", says="wrongly has")
class LooksForTheHeadAtTheTop(Right):
    def is_head(self, name):
        return name == "lm_head"


@breaks("HYB-NAMES-EMBEDDING", says="wrongly has")
class AlwaysTakesEmbeddings(Right):
    def names_of(self, name, module, _embeddings):
        return super().names_of(name, module, True)


@breaks("HYB-NAMES-EMBEDDING", says="leaves out")
class NeverTakesEmbeddings(Right):
    def names_of(self, name, module, _embeddings):
        return super().names_of(name, module, False)


@breaks("HYB-NAMES-CONV1D", says="leaves out block.c_attn")
class DoesNotKnowConv1D(Right):
    def is_linear(self, module):
        return type(module) is nn.Linear


@breaks("HYB-NAMES-PEFT", says="wrongly has")
class TakesDefaultForALayer(Right):
    def is_adapter(self, name, module):
        return super().is_adapter(name.rpartition(".")[2], module)


@breaks("HYB-NAMES-PEFT", says="leaves out")
class SkipsBaseLayers(Right):
    def names_of(self, name, module, embeddings):
        return [] if "base_layer" in name else super().names_of(name, module, embeddings)


@breaks("HYB-NAMES-LAYER", says="wrongly has")
class SendsWholeLoraLayers(Right):
    def is_linear(self, module):
        return super().is_linear(module) or isinstance(module, nn.Linear)


@breaks("HYB-NAMES-NONE", says="gave no warning")
class SaysNothing(Right):
    def warn_if_none(self, names):
        pass


@breaks("HYB-NAMES-NONE", says="although it found")
class AlwaysWarns(Right):
    def warn_if_none(self, _names):
        warnings.warn("nothing runs remotely", stacklevel=2)


@breaks("HYB-LINEAR-LAYERS", says="is False: expected True")
class ListsNoConv1D(Right):
    LINEAR_LAYERS = (nn.Linear,)


@breaks("HYB-LINEAR-LAYERS", says="is True: expected False")
class ListsEveryModule(Right):
    LINEAR_LAYERS = (nn.Module,)


@breaks("HYB-NAMES-WHOLE", says="leaves out")
class LooksAtTheBeginningOfComponents(Right):
    def is_adapter(self, name, module):
        begins = any(part.startswith(("lora_A", "lora_B")) for part in name.split("."))
        return begins or super().is_adapter(name, module)


@breaks("HYB-NAMES-WHOLE", says="leaves out")
class LooksAtTheEndOfComponents(Right):
    def is_adapter(self, name, module):
        ends = any(part.endswith(("lora_A", "lora_B")) for part in name.split("."))
        return ends or super().is_adapter(name, module)


@breaks("HYB-NAMES-WHOLE", says="leaves out")
class IgnoresTheCase(Right):
    def is_adapter(self, name, module):
        return super().is_adapter(name, module) or not {"lora_a", "lora_b"}.isdisjoint(name.lower().split("."))


@breaks("HYB-NAMES-WHOLE", says="leaves out")
class TakesLeavesWithoutTheUnderscore(Right):
    def is_adapter(self, name, module):
        leaf = next(module.children(), None) is None
        return super().is_adapter(name, module) or (leaf and name.rpartition(".")[2].startswith("lora"))


@breaks("HYB-NAMES-KINDS", says="wrongly has")
class SendsSubclasses(Right):
    def is_linear(self, module):
        own = isinstance(module, nn.Linear) and not isinstance(module, reference.LinearLoRA)
        return own or super().is_linear(module)
