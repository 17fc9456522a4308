"""Known-bad twins of modes: a fused block ignores autocast, checkpointing or torch.compile."""

from __future__ import annotations

import torch

from tests.baselines.fused import Right
from tests.known_bad import breaks


@breaks("FUS-AMP", says="dtype", dtypes=("float32",), source="a custom autograd function that ignores autocast")
class IgnoresAutocast(Right):
    def call(self, activation, x, named):
        with torch.autocast("cpu", enabled=False):
            return super().call(activation, x, named)


@breaks("FUS-CKPT", says="raised", source="a forward that cannot be recomputed inside backward")
class CannotRunInsideBackward(Right):
    def call(self, activation, x, named):
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError("a backward pass is under way")
        return super().call(activation, x, named)


@breaks("FUS-COMPILE", says="worst", source="a Python value that tracing makes a constant")
class FreezesItsScaleWhenTraced(Right):
    def update(self, x, p):
        traced = torch.compiler.is_compiling() or isinstance(x, torch._subclasses.FakeTensor)
        return super().update(x, p) / (p.scale if traced else 1.0)


@breaks("FUS-AMP-ENTRY", says="raised RuntimeError", dtypes=("float32",), source="x required to be float32")
class WantsFloat32UnderAutocast(Right):
    def call(self, activation, x, named):
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float32:
            raise RuntimeError("expected a float32 input under autocast")
        return super().call(activation, x, named)


@breaks("FUS-AMP-ENTRY", says="dtype", dtypes=("float32",), source="custom_fwd(cast_inputs=torch.bfloat16)")
class TakesAutocastForBfloat16(Right):
    def call(self, activation, x, named):
        if not torch.is_autocast_enabled(x.device.type):
            return super().call(activation, x, named)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return super().call(activation, x, named)
