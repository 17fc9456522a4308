"""Known-bad twins of side effects: a split model changes its inputs, the process, or layers that were not named."""

from __future__ import annotations

import torch
from torch import nn

import reference
from reference.service.linear_product import product_of
from reference.split_model import _put
from tests.baselines.fhe import Right, fhe_breaks
from tests.known_bad.hybrid.kept_result import Kept

SINGLE = ("float32",)


@fhe_breaks("FHE-INPUTS", says="x was modified in place", source="unslothai/unsloth c3d6def64a (AL1)")
class QuantizesInPlace(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        if x.numel() and 0 not in x.stride():
            x.detach().copy_((x.detach() * 8).round() / 8)
        return y


@fhe_breaks("FHE-INPUTS", says="weight was modified in place")
class QuantizesTheWeightInPlace(reference.RemoteModule):
    def take(self, quantized, std):
        weight, _ = product_of(self.private_module, self.module_name)
        rounded = (weight * 0.75).round()
        if not torch.equal(weight.round(), weight):
            weight.data.copy_(rounded)
        super().take(quantized, std)


@fhe_breaks("FHE-OUTPUT", says="raised", dtypes=SINGLE)
class KeepsItsOutput(Right):
    def CustomLinear(self, weight, bias=None, weight_transposed=False):
        layer = reference.CustomLinear(weight, bias, weight_transposed)
        layer.register_forward_hook(lambda _module, _inputs, y: Kept.apply(y))
        return layer


@fhe_breaks("FHE-OUTPUT", says="elements wrong", dtypes=SINGLE)
class ReusesItsOutput(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        kept = getattr(self, "kept", None)
        if kept is None or kept.shape != y.shape:
            object.__setattr__(self, "kept", y.clone())
            return self.kept.detach()
        return kept.copy_(y).detach()


@fhe_breaks("FHE-SIDE-GLOBAL", says="torch's random state", dtypes=SINGLE)
class SeedsTheGlobalGenerator(reference.RemoteModule):
    def _with_noise(self, raw):
        torch.manual_seed(self.split.noise_drawn)
        return super()._with_noise(raw)


@fhe_breaks("FHE-SIDE-GLOBAL", says="grad mode", dtypes=SINGLE)
class LeavesGradModeOff(reference.HybridFHEModel):
    def compile_model(self, x, n_bits=8, use_dynamic_quantization=True):
        super().compile_model(x, n_bits, use_dynamic_quantization)
        torch.set_grad_enabled(False)


@fhe_breaks("FHE-ONLY-NAMED", says="was replaced although only", dtypes=("float64",))
class ReplacesEveryLinear(reference.HybridFHEModel):
    def __init__(self, model, module_names, *args, **options):
        super().__init__(model, module_names, *args, **options)
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and not name.endswith("private_module"):
                _put(model, name, self.remote_module(module, name, self._split))


@fhe_breaks("FHE-ONLY-NAMED", says="remote_modules has", dtypes=("float64",))
class NumbersItsModules(reference.HybridFHEModel):
    def __init__(self, model, module_names, *args, **options):
        super().__init__(model, module_names, *args, **options)
        self.remote_modules = {str(i): module for i, module in enumerate(self.remote_modules.values())}


@fhe_breaks("FHE-TWO-NAMES", says="one module under two names became two", dtypes=("float64",))
class MakesTwoOfOne(reference.HybridFHEModel):
    def __init__(self, model, module_names, *args, **options):
        layers = {name: module for name, module in model.named_modules(remove_duplicate=False) if "." not in name}
        super().__init__(model, module_names, *args, **options)
        for name, module in layers.items():
            if name and sum(module is other for other in layers.values()) > 1:
                remote = self.remote_module(module, name, self._split)
                self.remote_modules[name] = remote
                setattr(model, name, remote)


@fhe_breaks("FHE-TWO-NAMES", says="the module was not replaced everywhere", dtypes=("float64",))
class ReplacesOneOfTwoNames(reference.HybridFHEModel):
    def __init__(self, model, module_names, *args, **options):
        layers = {name: module for name, module in model.named_modules(remove_duplicate=False) if "." not in name}
        super().__init__(model, module_names, *args, **options)
        for name, module in layers.items():
            if name not in (*module_names, "") and isinstance(getattr(model, name), reference.RemoteModule):
                setattr(model, name, module)
