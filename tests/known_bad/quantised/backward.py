"""Known-bad twins of backward: a lost or doubled term, another weight than in forward, state that calls share."""

from __future__ import annotations

import torch

from tests.baselines.quantised import RightLayer
from tests.known_bad.quantised.forward import ReadsStorage, wrong


@wrong("QNT-BWD-DX", says="as if the base term were missing", source="torchao int8 dynamic: a product without a graph")
class LosesTheBaseInDX(RightLayer):
    def back(self, g, dtype):
        return super().back(g, dtype) * 0


@wrong("QNT-BWD-DX", says="as if the adapter term were missing", source="an adapter on a detached x")
class LosesTheAdapterInDX(RightLayer):
    def update(self, x):
        return super().update(x.detach())


@wrong(
    "QNT-BWD-DX", says="worst    dX", source="bitsandbytes-foundation/bitsandbytes #1472 in the backward kernel alone"
)
class SwapsTheNibblesInBackward(ReadsStorage):
    backward = False

    def read(self, name, field):
        swapped = self.backward and field.dtype == torch.uint8 and name == "codes"
        return field << 4 | field >> 4 if swapped else field

    def back(self, g, dtype):
        self.backward = True
        try:
            return super().back(g, dtype)
        finally:
            self.backward = False


@wrong("QNT-BWD-DX", says="worst    dX", source="codes without their scales in backward")
class MultipliesByTheCodesInBackward(ReadsStorage):
    def read(self, name, field):
        return torch.ones_like(field) if name in ("scale", "absmax") else field

    def product(self, x, dtype):
        return x @ self.packed_weight.dequantize(dtype).to(x.dtype).T


@wrong("QNT-BWD-DA", says="constant ratio", source="a scale that backward leaves out")
class LeavesTheScaleOutOfDA(RightLayer):
    def update(self, x):
        y = super().update(x)
        if self.lora_A.weight.requires_grad:
            self.lora_A.weight.register_hook(lambda gradient: gradient / (2 * self.scale))
        return y


@wrong("QNT-BWD-DB", says="constant ratio", source="a mean over tokens")
class DividesDBByTheTokens(RightLayer):
    def update(self, x):
        y = super().update(x)
        if self.lora_B.weight.requires_grad:
            self.lora_B.weight.register_hook(lambda gradient: gradient / 3)
        return y


@wrong("QNT-BWD-NEEDS", says="as if the base term were missing", source="a graph for the base only where A trains")
class NeedsATrainableAdapterForDX(RightLayer):
    def base(self, x):
        return super().base(x if self.lora_A.weight.requires_grad else x.detach())


@wrong("QNT-BWD-NEEDS", says="although the base is frozen", source="a bias that is not frozen")
class GivesTheBiasAGradient(RightLayer):
    def forward(self, x):
        if self.bias is not None:
            self.bias.requires_grad_()
        return super().forward(x)


@wrong(
    "QNT-BWD-MODES", says="worst", source="bitsandbytes-foundation/bitsandbytes #2078: repacked for inference in place"
)
class RepacksForInference(ReadsStorage):
    repacked = False

    def forward(self, x):
        if not self.training and not torch.is_grad_enabled():
            self.repacked = True
        return super().forward(x)

    def read(self, name, field):
        other = self.repacked and name == "codes"
        return field.flatten().roll(1).view(field.shape) if other else field


@wrong("QNT-BWD-MODES", says="dX is None", source="a path for eval mode without a graph")
class HasNoGraphInEval(RightLayer):
    def forward(self, x):
        return super().forward(x if self.training else x.detach())


class SharesScratch(RightLayer):
    """A layer whose Ŵ lies in memory that layers of its shape share."""

    scratch: dict = {}  # noqa: RUF012

    def product(self, x, dtype):
        numbers = self.numbers(dtype)
        self.scratch[numbers.shape] = numbers
        return x @ numbers.to(x.dtype).T


@wrong("QNT-BWD-LATER", says="worst", source="scratch memory that all layers share and backward reads")
class ReadsTheScratchOfTheLaterLayer(SharesScratch):
    def back(self, g, dtype):
        return g @ self.scratch[self.packed_weight.shape].to(g.dtype)


@wrong("QNT-BWD-TWICE", says="raised", source="what backward needs, freed by its first run")
class FreesWhatBackwardNeeds(SharesScratch):
    scratch: dict = {}  # noqa: RUF012

    def back(self, g, dtype):
        return g @ self.scratch.pop(self.packed_weight.shape).to(g.dtype)


@wrong("QNT-BWD-TWICE", says="as if the base term were added twice", source="a gradient that is scaled in place")
class ScalesTheGradientInPlace(RightLayer):
    count = 0

    def product(self, x, dtype):
        self.count = 0
        return super().product(x, dtype)

    def back(self, g, dtype):
        self.count += 1
        return super().back(g, dtype) * self.count
