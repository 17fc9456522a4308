"""Known-bad twins of weights erased: the client keeps a remote weight in some form."""

from __future__ import annotations

import torch

import reference
from tests.baselines.remote import remote_breaks


class Keeping(reference.RemoteModule):
    """A remote module that keeps the weight in some form when it is cleared."""

    kept = None

    def keep(self):
        raise NotImplementedError

    def clear(self):
        object.__setattr__(self, "kept", self.keep())
        super().clear()


@remote_breaks("REM-CLEARED", says="a Tensor holds a row of one's weight as torch.float32")
class KeepsTheWeightInAList(Keeping):
    def keep(self):
        return [self.private_module.weight.detach().clone()]


@remote_breaks("REM-CLEARED", says="of one's weight, quantised, as int8")
class KeepsTheQuantizedWeight(Keeping):
    def keep(self):
        return {"weight": self.quantized.weight.to(torch.int8).numpy().copy()}


@remote_breaks("REM-CLEARED", says="a bytes holds a row of one's weight as torch.bfloat16")
class KeepsTheWeightAsBytes(Keeping):
    def keep(self):
        return [self.private_module.weight.detach().bfloat16().view(torch.uint8).numpy().tobytes()]


@remote_breaks("REM-CLEARED", says="mode simulate after clearing returned Tensor")
class SimulatesWithoutAWeight(reference.HybridFHEModel):
    def __call__(self, x, fhe="disable"):
        if fhe == "simulate" and any(module.private_module is None for module in self.remote_modules.values()):
            return x.clone()
        return super().__call__(x, fhe)
