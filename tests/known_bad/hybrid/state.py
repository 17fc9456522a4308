"""Known-bad twins of state: `CustomLinear` exposes, saves or copies the wrong tensors."""

from __future__ import annotations

import copy

from torch import nn

from tests.baselines.hybrid import Layer, Right
from tests.known_bad import breaks


@breaks("HYB-ATTRIBUTES", says="in_features is")
class SwapsTheFeaturesOfTransposedWeights(Right):
    def CustomLinear(self, weight, bias=None, weight_transposed=False):
        layer = super().CustomLinear(weight, bias, weight_transposed)
        layer.out_features, layer.in_features = weight.shape
        return layer


@breaks("HYB-ATTRIBUTES", says="raised AttributeError")
class HasNoWeight(Right):
    def CustomLinear(self, weight, bias=None, weight_transposed=False):
        layer = super().CustomLinear(weight, bias, weight_transposed)
        del layer.weight
        return layer


@breaks(
    "HYB-STATE",
    says="holds the weight 2 times",
    source="zama-ai/concrete-ml HEAD: CustomLinear",
)
class RegistersTheWeightAgain(Right):
    def BackwardModuleLinear(self, weight, weight_transposed=False):
        module = super().BackwardModuleLinear(weight, weight_transposed)
        module.weight = weight
        return module


@breaks("HYB-STATE", says="expected 1 tensors")
class SavesAnEmptyBias(Right):
    def CustomLinear(self, weight, bias=None, weight_transposed=False):
        layer = super().CustomLinear(weight, bias, weight_transposed)
        if bias is None:
            layer.register_buffer("no_bias", weight.new_zeros(0))
        return layer


@breaks("HYB-LOAD", says="elements wrong")
class CopiesTheWeightForBackward(Right):
    def BackwardModuleLinear(self, weight, weight_transposed=False):
        return super().BackwardModuleLinear(weight.detach().clone(), weight_transposed)


@breaks("HYB-LOAD", says="elements wrong")
class CopiesTheWeightForForward(Right):
    def ForwardModuleLinear(self, weight, bias=None, weight_transposed=False):
        return super().ForwardModuleLinear(weight.detach().clone(), bias, weight_transposed)


@breaks("HYB-COPY", says="of CustomLinear raised")
class CannotBePickled(Right):
    def CustomLinear(self, weight, bias=None, weight_transposed=False):
        layer = super().CustomLinear(weight, bias, weight_transposed)
        layer.remote_call = lambda x: x
        return layer


class KeepsBackward(Layer):
    """A layer whose copies share its backward module."""

    def __deepcopy__(self, memo):
        memo[id(self.backward_module)] = self.backward_module
        kept = self.__class__.__new__(self.__class__)
        nn.Module.__init__(kept)
        memo[id(self)] = kept
        kept.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return kept


@breaks("HYB-COPY", says="elements wrong")
class SharesBackwardWithItsCopies(Right):
    def CustomLinear(self, weight, bias=None, weight_transposed=False):
        return KeepsBackward(self, weight, bias, weight_transposed)


@breaks("HYB-TO", says="raised")
class ConvertsForwardOnly(Right):
    def BackwardModuleLinear(self, weight, weight_transposed=False):
        return super().BackwardModuleLinear(weight.detach(), weight_transposed)
