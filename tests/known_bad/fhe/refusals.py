"""Known-bad twins of refusals: a split model accepts what it must refuse."""

from __future__ import annotations

from torch import nn

import reference
from reference import HybridFHEMode as Mode
from tests.baselines.fhe import fhe_breaks
from tests.known_bad.fhe.integer_layer import GR2

SINGLE = ("float32",)


@fhe_breaks("FHE-NEEDS-DX", says="expected ValueError or RuntimeError", source=GR2, dtypes=SINGLE)
class DetachesInQuantizedModes(reference.RemoteModule):
    def forward(self, x):
        quantized = self.split.mode in (Mode.DISABLE, Mode.SIMULATE)
        return super().forward(x.detach() if quantized else x)


@fhe_breaks("FHE-EARLY", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class ComputesFloatsBeforeCompiling(reference.HybridFHEModel):
    def set_fhe_mode(self, mode):
        uncompiled = any(module.quantized is None for module in self.remote_modules.values())
        super().set_fhe_mode("torch" if uncompiled and Mode(mode) is not Mode.CALIBRATE else mode)


@fhe_breaks("FHE-EARLY", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class CompilesOnDemand(reference.HybridFHEModel):
    def set_fhe_mode(self, mode):
        for module in self.remote_modules.values():
            if module.quantized is None and Mode(mode) in (Mode.DISABLE, Mode.SIMULATE):
                module.take(*module.compiled(8, True))
        super().set_fhe_mode(mode)


@fhe_breaks("FHE-LATE", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class CalibratesAgain(reference.HybridFHEModel):
    def set_fhe_mode(self, mode):
        if Mode(mode) is Mode.CALIBRATE:
            self._split.mode = Mode.CALIBRATE
            return
        super().set_fhe_mode(mode)


@fhe_breaks("FHE-LATE", says="elements wrong", dtypes=SINGLE)
class ForgetsWhatWasCompiled(reference.HybridFHEModel):
    def set_fhe_mode(self, mode):
        if Mode(mode) is Mode.CALIBRATE:
            for module in self.remote_modules.values():
                if module.quantized is not None:
                    module.quantized.weight_scale = module.quantized.weight_scale * 2
        super().set_fhe_mode(mode)


@fhe_breaks("FHE-UNKNOWN-MODE", says="expected ValueError", dtypes=SINGLE)
class TakesUnknownModesForTorch(reference.HybridFHEModel):
    def set_fhe_mode(self, mode):
        try:
            super().set_fhe_mode(mode)
        except ValueError:
            super().set_fhe_mode("torch")


@fhe_breaks("FHE-UNKNOWN-MODE", says="error ÷ budget", dtypes=SINGLE)
class FallsBackAfterAnUnknownMode(reference.HybridFHEModel):
    def set_fhe_mode(self, mode):
        before, self._split.mode = self._split.mode, Mode.TORCH
        try:
            super().set_fhe_mode(mode)
        except RuntimeError:
            self._split.mode = before
            raise


@fhe_breaks("FHE-NO-SERVER", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class RunsHereWithoutAServer(reference.HybridFHEModel):
    def set_fhe_mode(self, mode):
        super().set_fhe_mode("disable" if Mode(mode) is Mode.REMOTE and self._split.server is None else mode)


@fhe_breaks("FHE-N-BITS", says="compile_model(x, n_bits=", dtypes=SINGLE)
class TakesAnyNumberOfBits(reference.RemoteModule):
    def compiled(self, n_bits, dynamic):
        return super().compiled(min(max(int(n_bits or 8), 2), 16), dynamic)


@fhe_breaks("FHE-N-BITS", says="compile_model(x, n_bits=True)", dtypes=SINGLE)
class TakesTrueForTwo(reference.RemoteModule):
    def compiled(self, n_bits, dynamic):
        return super().compiled(n_bits + 1 if isinstance(n_bits, bool) else n_bits, dynamic)


@fhe_breaks("FHE-N-BITS", says="fhe='disable' after a refused compile_model", dtypes=SINGLE)
class CompilesBeforeItRefuses(reference.RemoteModule):
    def compiled(self, n_bits, dynamic):
        self.take(*super().compiled(8, dynamic))
        return super().compiled(n_bits, dynamic)


@fhe_breaks("FHE-NONFINITE", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class TakesNaNForZero(reference.QuantizedLinear):
    def quantize(self, x):
        return super().quantize(x.nan_to_num(0.0, 0.0, 0.0))


@fhe_breaks("FHE-NONFINITE", says="in weight with compile_model returned", dtypes=SINGLE)
class TakesNaNWeightsForZero(reference.QuantizedLinear):
    def __init__(self, weight, bias, n_bits, input_range=None):
        super().__init__(weight.nan_to_num(0.0, 0.0, 0.0), bias, n_bits, input_range)


@fhe_breaks("FHE-NONFINITE", says="raised IndexError", dtypes=SINGLE)
class FindsNaNByAccident(reference.QuantizedLinear):
    def quantize(self, x):
        if not x.isfinite().all():
            raise IndexError("index 9223372036854775807 is out of bounds")
        return super().quantize(x)


@fhe_breaks("FHE-NAMES", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class IgnoresUnknownNames(reference.HybridFHEModel):
    def __init__(self, model, module_names, *args, **options):
        every = dict(model.named_modules())
        super().__init__(model, [name for name in module_names if name in every], *args, **options)


@fhe_breaks("FHE-NAMES", says="had replaced a layer by then", dtypes=SINGLE)
class ReplacesBeforeItLooks(reference.HybridFHEModel):
    def __init__(self, model, module_names, *args, **options):
        for name in module_names:
            super().__init__(model, [name], *args, **options)
        if not module_names:
            super().__init__(model, module_names, *args, **options)


@fhe_breaks("FHE-NAMES", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class SendsAdaptersToTheServer(reference.HybridFHEModel):
    def __init__(self, model, module_names, *args, **options):
        renamed = {"lora_A": "adapter"}
        for name in set(module_names) & set(renamed):
            setattr(model, renamed[name], getattr(model, name))
        super().__init__(model, [renamed.get(name, name) for name in module_names], *args, **options)


@fhe_breaks("FHE-NAMES", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class TakesASubclassForALinear(reference.HybridFHEModel):
    def __init__(self, model, module_names, *args, **options):
        for name in module_names:
            module = getattr(model, name, None)
            if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
                plain = nn.Linear(module.in_features, module.out_features)
                setattr(model, name, plain)
        super().__init__(model, module_names, *args, **options)


@fhe_breaks("FHE-FEATURES", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class PadsAndCuts(reference.RemoteModule):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, self.in_features - x.shape[-1])))


@fhe_breaks("FHE-FEATURES", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class ExpandsOneFeature(reference.RemoteModule):
    def forward(self, x):
        return super().forward(x.expand(*x.shape[:-1], self.in_features) if x.shape[-1] == 1 else x)


@fhe_breaks("FHE-STATIC-UNSEEN", says="expected ValueError or RuntimeError", dtypes=SINGLE)
class AssumesARange(reference.RemoteModule):
    def compiled(self, n_bits, dynamic):
        self.input_range = self.input_range or (0.0, 1.0)
        return super().compiled(n_bits, dynamic)
