"""Known-bad twins of training step: a training step on integers loses the gradients of frozen layers."""

from __future__ import annotations

import reference
from reference.hybrid import BackwardModuleLinear
from tests.baselines.fhe import fhe_breaks
from tests.known_bad.fhe.integer_layer import GR2

DOUBLE = ("float64",)


class Folded(reference.HybridFHEModel):
    """A base class for models with a wrong training step."""


@fhe_breaks("FHE-TRAIN", says="gradient of inner", dtypes=DOUBLE)
class DifferentiatesInFloats(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        if isinstance(self.private_module, BackwardModuleLinear):
            return self.private_module(x)
        return super()._in_integers(x, quantized, mode)


@fhe_breaks("FHE-TRAIN", says="gradient of inner", source=GR2, dtypes=DOUBLE)
class LosesTheGradientOfFrozenLayers(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        return y * 0 if isinstance(self.private_module, BackwardModuleLinear) else y


@fhe_breaks("FHE-TRAIN", says="compile_model left gradients behind", dtypes=DOUBLE)
class CompilesWithAStep(Folded):
    def _run_once(self, x):
        self._run(x)


@fhe_breaks("FHE-SKIPPED", says="expected RuntimeError or ValueError", source=GR2, dtypes=DOUBLE)
class GivesASkippedLayerNoGradient(reference.RemoteModule):
    def forward(self, x):
        return super().forward(x.detach()) + 0 * x.sum()


@fhe_breaks("FHE-SKIPPED", says="does not name first", dtypes=DOUBLE)
class DoesNotNameTheSkippedLayer(reference.RemoteModule):
    def forward(self, x):
        try:
            return super().forward(x)
        except RuntimeError as error:
            raise RuntimeError(str(error).replace(self.module_name, "a module")) from None
