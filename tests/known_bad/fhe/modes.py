"""Known-bad twins of group `fhe`: the modes one after another, and training in them."""

from __future__ import annotations

import torch

import reference
from reference import HybridFHEMode as Mode
from reference.hybrid import BackwardModuleLinear
from tests.baselines.fhe import fhe_breaks
from tests.known_bad.fhe.layer import DOUBLE, GR2, SINGLE


@fhe_breaks("FHE-TORCH", says="elements wrong", dtypes=SINGLE)
class QuantizesInModeTorch(reference.RemoteModule):
    def forward(self, x):
        if self.split.mode is Mode.TORCH and self.quantized is not None:
            with torch.no_grad():
                return self._in_integers(x, self.quantized, Mode.DISABLE)
        return super().forward(x)


@fhe_breaks("FHE-TORCH", says="constant ratio 2", dtypes=SINGLE)
class DoublesWhileCalibrating(reference.RemoteModule):
    def forward(self, x):
        y = super().forward(x)
        return y * 2 if self.split.mode is Mode.CALIBRATE else y


@fhe_breaks("FHE-TORCH-LINEAR", says="y does not require grad", source=GR2)
class DetachesTheInput(reference.RemoteModule):
    def forward(self, x):
        return super().forward(x.detach())


@fhe_breaks("FHE-TORCH-LINEAR", says="y does not require grad", source=GR2)
class ComputesModeTorchWithoutGradient(reference.RemoteModule):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


@fhe_breaks("FHE-MODES", says="is not what it was before", dtypes=SINGLE)
class KeepsTheWidestRange(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y, largest = super()._in_integers(x, quantized, mode), float(x.abs().max()) if x.numel() else 0.0
        self.first = getattr(self, "first", largest)
        self.widest = max(getattr(self, "widest", 0.0), largest)
        return y * (1 + 2**-6) if self.widest > 8 * self.first else y


@fhe_breaks("FHE-MODES", says="is not what it was before", dtypes=SINGLE)
class StaysNoisy(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        if mode is Mode.SIMULATE:
            self.noisy = True
        return y * (1 + 2**-6) if mode is Mode.DISABLE and getattr(self, "noisy", False) else y


@fhe_breaks("FHE-MODES", says="is not what it was before", dtypes=SINGLE)
class LeavesBackwardInItsFirstMode(reference.RemoteModule):
    def forward(self, x):
        if not isinstance(self.private_module, BackwardModuleLinear):
            return super().forward(x)
        before = self.split.mode
        self.count = getattr(self, "count", 0) + 1
        self.split.mode = Mode.TORCH if self.count > 2 else before
        try:
            return super().forward(x)
        finally:
            self.split.mode = before


@fhe_breaks("FHE-MODES", says="is not what it was before", dtypes=SINGLE)
class RoundsTheWeightOnce(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        if mode is Mode.DISABLE and quantized.weight is not None and not hasattr(self, "folded"):
            self.folded = True
            quantized.weight_scale = quantized.weight_scale * (1 + 2**-6)
        return y


class Folded(reference.HybridFHEModel):
    """A model whose step differs."""


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


@fhe_breaks("FHE-NEEDS-DX", says="expected ValueError or RuntimeError", source=GR2, dtypes=SINGLE)
class DetachesInQuantizedModes(reference.RemoteModule):
    def forward(self, x):
        quantized = self.split.mode in (Mode.DISABLE, Mode.SIMULATE)
        return super().forward(x.detach() if quantized else x)
