"""Known-bad twins of dropout: a DoRA layer applies dropout to the base, or rescales the base under dropout."""

from __future__ import annotations

from torch import Tensor, nn

from tests.baselines.conventions import DroppedAdapter, declaring
from tests.baselines.layer import Layer
from tests.known_bad import record
from tests.known_bad.dora.registration import twin


@twin("DORA-DROP-PRE", says="as if dropout had not acted", source="a probability that is stored and never used")
class IgnoresDropout(Layer):
    def dropped(self, x: Tensor) -> Tensor:
        return x


record(
    "DropsOnlyTheAdapterUndeclared",
    declaring(DroppedAdapter),
    "DORA-DROP-PRE",
    says='as if dropout acted on the adapter\'s term alone (declare the feature dora_dropout as "adapter"',
    source="another convention, not declared",
    phrase="drops only the adapter's term of a DoRA layer",
)
record(
    "DropsTheWholeChangeThoughItSaysTheAdapter",
    declaring(Layer, dora_dropout="adapter"),
    "DORA-DROP-PRE",
    says="as if dropout acted on DoRA's change of the output",
    source="a convention declared and not followed",
    phrase="drops DoRA's whole change although it declares to drop the adapter's term",
)


@twin("DORA-DROP", says="worst", source="post dropout applied to the whole output")
class DropsTheWholeOutput(Layer):
    def dora(self, x: Tensor) -> Tensor:
        training, self.training = self.training, False
        y = super().dora(x)
        self.training = training
        return self.dropped(y)


@twin("DORA-DROP-PRE", says="worst", source="the base product computed from the dropped x")
class GivesTheBaseTheDroppedX(Layer):
    def dora(self, x: Tensor) -> Tensor:
        training, self.training = self.training, False
        y = super().dora(nn.functional.dropout(x, self.dropout, training))
        self.training = training
        return y


@twin("DORA-DROP-POST", says="y of the probe")
class DropsBaseAndUpdate(Layer):
    def dora(self, x: Tensor) -> Tensor:
        if not self.training or self.position == "pre":
            return super().dora(x)
        p, self.dropout = self.dropout, 0.0
        y = super().dora(x)
        self.dropout = p
        return self.dropped(y)


@twin("DORA-DROP-POST", says="y of the probe")
class ScalesTheBaseByTheMagnitudeWhenDropping(Layer):
    def dora(self, x: Tensor) -> Tensor:
        if not self.training or self.position == "pre":
            return super().dora(x)
        m, a, b = self.factor(), self.lora_A.weight, self.lora_B.weight
        y = m * nn.functional.linear(x, self.weight) + self.dropped(m * self.scale * ((x @ a.T) @ b.T))
        return (y if self.bias is None else y + self.bias).to(x.dtype)
