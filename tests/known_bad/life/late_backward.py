"""Known-bad twins of the lives of a layer whose backward pass looks at what the layer has become."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.baselines.life import LivedLayer, LivedNode
from tests.known_bad.life.registration import twin


class ByNode(LivedLayer):
    """Computes by a node of its own, and leaves autocast and a trainable bias to autograd."""

    node: Any = LivedNode

    def adapted(self, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            return super().adapted(x, weight, bias, A, B, scale)
        y: Tensor = self.node.apply(self, x, weight, A, B, scale)
        return y if bias is None else y + bias


@twin("LIFE-LAYER-BWD", says="after backward", source="backward reads layer.scale")
class ReadsTheScaleInBackward(ByNode):
    class Node(LivedNode):
        @staticmethod
        def scale(ctx: Any) -> float:
            return float(ctx.layer.scale)

    node = Node


@twin("LIFE-LAYER-BWD", says="after backward", source="backward reads layer.training")
class ReadsTheModeInBackward(ByNode):
    class Node(LivedNode):
        @staticmethod
        def vanishes(ctx: Any) -> bool:
            return bool(ctx.keeps or ctx.layer.training != ctx.training)

    node = Node


@twin("LIFE-LAYER-BWD", says="after backward", source="backward reads layer.lora_A and layer.lora_B")
class ReadsTheAdapterInBackward(ByNode):
    class Node(LivedNode):
        @staticmethod
        def saved(ctx: Any, held: Any) -> Any:
            x, weight, _, _ = held
            layer = ctx.layer
            return x, weight, layer.lora_A.weight, layer.lora_B.weight

    node = Node


@twin("LIFE-LAYER-BWD", says="after backward", source="backward reads layer.weight")
class ReadsTheWeightInBackward(ByNode):
    class Node(LivedNode):
        @staticmethod
        def saved(ctx: Any, held: Any) -> Any:
            x, _, A, B = held
            return x, ctx.layer.weight, A, B

    node = Node


@twin("LIFE-LAYER-BWD", says="after backward", source="x kept on the module, not in the graph")
class KeepsXOnTheModule(ByNode):
    class Node(LivedNode):
        @staticmethod
        def saved(ctx: Any, held: Any) -> Any:
            x, weight, A, B = held
            last = ctx.layer.kept
            return last if last.shape == x.shape and last.dtype == x.dtype else x, weight, A, B

    node = Node

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x.detach()
        return super().forward(x)


@twin("LIFE-LAYER-BWD", says="has been mutated", source="NVIDIA-NeMo/Automodel #3274: selective checkpointing")
class AddsTheUpdateIntoAProductThatACheckpointKeeps(LivedLayer):
    def adapted(self, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        base = F.linear(x, weight, bias)
        if self.training and self.dropout_p == 1.0:
            return base
        return base.add_(self.update(x, A, B, scale).to(base.dtype))
