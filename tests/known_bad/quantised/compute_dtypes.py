"""Known-bad twins of dtypes: a compute dtype that is ignored or returned, casts of the adapter, autocast."""

from __future__ import annotations

import torch

from reference.linear import autocasting
from tests.baselines.quantised import RightLayer
from tests.known_bad.quantised.forward import wrong


@wrong("QNT-DTYPE-COMPUTE", says="expected torch.float32", dtypes=("float32",), source="y in the compute dtype")
class ReturnsTheComputeDtype(RightLayer):
    def forward(self, x):
        y = super().forward(x)
        return y if self.compute_dtype is None or not x.numel() else y.to(self.compute_dtype)


@wrong("QNT-DTYPE-COMPUTE", says="worst", dtypes=("float32",), source="bfloat16 as a default that is not overridden")
class AlwaysComputesInBfloat16(RightLayer):
    def computes(self, x):
        return torch.bfloat16


@wrong("QNT-DTYPE-COMPUTE", says="raised", source="operands of two dtypes in one product")
class MixesDtypes(RightLayer):
    def base(self, x):
        if self.compute_dtype not in (None, x.dtype):
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return super().base(x)


@wrong("QNT-DTYPE-MIXED", says="y has dtype", source="the dtype of the adapter for y")
class ReturnsTheDtypeOfTheAdapter(RightLayer):
    def forward(self, x):
        return super().forward(x).to(self.lora_A.weight.dtype)


@wrong("QNT-DTYPE-MIXED", says="worst", dtypes=("float32",), source="a base in the dtype of the adapter")
class ComputesTheBaseInTheDtypeOfTheAdapter(RightLayer):
    def computes(self, x):
        return self.lora_A.weight.dtype


@wrong("QNT-AMP", says="y has dtype torch.float32", dtypes=("float32",), source="a base that autocast does not reach")
class IgnoresAutocast(RightLayer):
    def forward(self, x):
        return super().forward(x).to(x.dtype)


@wrong("QNT-AMP-COMPUTE", says="worst    y", dtypes=("float32",), source="F.linear on Ŵ inside the region")
class LetsAutocastChangeTheComputeDtype(RightLayer):
    def computes(self, x):
        return torch.bfloat16 if autocasting(x) else super().computes(x)


@wrong("QNT-AMP-COMPUTE", says="y has dtype", dtypes=("float32",), source="y in the dtype of autocast")
class ReturnsTheDtypeOfAutocast(RightLayer):
    def forward(self, x):
        y = super().forward(x)
        return y.to(torch.bfloat16) if autocasting(x) else y
