"""Known-bad twins of mode switching: a split model stays in an earlier mode, or ignores a changed weight."""

from __future__ import annotations

import enum

import torch

import reference
from reference import HybridFHEMode as Mode
from reference.hybrid import BackwardModuleLinear
from reference.service.weight_version import Version
from tests.baselines.fhe import Right, fhe_breaks

SINGLE = ("float32",)


class OtherMode(enum.Enum):
    """The modes without REMOTE."""

    TORCH = "torch"
    CALIBRATE = "calibrate"
    DISABLE = "disable"
    SIMULATE = "simulate"
    EXECUTE = "execute"


@fhe_breaks("FHE-MODE-KINDS", says="HybridFHEMode.REMOTE is None", dtypes=SINGLE)
class HasNoModeRemote(Right):
    HybridFHEMode = OtherMode


@fhe_breaks("FHE-MODE-KINDS", says="raised AttributeError", dtypes=SINGLE)
class TakesWordsAlone(reference.HybridFHEModel):
    def set_fhe_mode(self, mode):
        super().set_fhe_mode(mode.lower())


@fhe_breaks("FHE-MODE-KINDS", says="error ÷ budget", dtypes=SINGLE)
class ReturnsToModeTorch(reference.HybridFHEModel):
    def __call__(self, x, fhe="disable"):
        y = super().__call__(x, fhe)
        if not torch.is_tensor(y) or not y.requires_grad:
            self._split.mode = Mode.TORCH
        return y


@fhe_breaks("FHE-DEFAULT-MODE", says="error ÷ budget", dtypes=SINGLE)
class RunsInModeTorchByDefault(reference.HybridFHEModel):
    def __call__(self, x, fhe="torch"):
        return super().__call__(x, fhe)


@fhe_breaks("FHE-DEFAULT-MODE", says="error ÷ budget", dtypes=SINGLE)
class StaysInItsModeByDefault(reference.HybridFHEModel):
    def __call__(self, x, fhe=None):
        return super().__call__(x, fhe or self.mode)


@fhe_breaks("FHE-CHANGED", says="is that of the weight before it was changed")
class KeepsStaleWeights(reference.RemoteModule):
    def _compiled(self):
        return self.quantized


@fhe_breaks("FHE-CHANGED", says="is that of the bias before it was changed")
class KeepsAStaleBias(reference.RemoteModule):
    def _compiled(self):
        bias = getattr(self.private_module, "bias", None)
        if bias is not None and self._compiled_from is not None:
            self._compiled_from[1] = Version.of(bias)
        return super()._compiled()


@fhe_breaks("FHE-CHANGED", says="elements wrong")
class DoesNotFollowAssignedWeights(reference.RemoteModule):
    """The module keeps its first weight under another name and puts it back before each call."""

    def forward(self, x):
        if not hasattr(self, "first"):
            object.__setattr__(self, "first", [self.private_module.weight, getattr(self.private_module, "bias", None)])
        if self.private_module is not None:
            self.private_module.weight = self.first[0]
            if self.first[1] is not None:
                self.private_module.bias = self.first[1]
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
