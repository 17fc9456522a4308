"""Known-bad twins of initialisation: a fresh adapter is drawn from a wrong distribution."""

# ruff: noqa: ARG005  (twins ignore arguments on purpose)

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL, AfterPatching, ChangesOptions, reclassed


class Draws(AfterPatching):
    """A patched layer whose lora_A is redrawn by `draw`."""

    def spoil(self, layer: Any, options: Any) -> None:
        if not layer.lora_A.weight.is_meta:
            with torch.no_grad():
                self.draw(layer.lora_A.weight, options.get("lora_A_init_method", "xavier"))

    def draw(self, a: torch.Tensor, method: str) -> None:
        raise NotImplementedError


@breaks(
    "MOD-INIT-XAVIER",
    says="has mean 0.5",
    source="NVIDIA-NeMo/Automodel, an older release: A from U(0, 1)",
    **MODEL,
)
class DrawsBetweenZeroAndOne(Draws):
    def draw(self, a: torch.Tensor, method: str) -> None:
        if method == "xavier":
            nn.init.uniform_(a)


@breaks("MOD-INIT-XAVIER", says="fourth moment", **MODEL)
class DrawsXavierUniform(Draws):
    def draw(self, a: torch.Tensor, method: str) -> None:
        if method == "xavier":
            nn.init.xavier_uniform_(a)


@breaks("MOD-INIT-XAVIER", says="has standard deviation", **MODEL)
class DrawsByFanInAlone(Draws):
    def draw(self, a: torch.Tensor, method: str) -> None:
        if method == "xavier":
            nn.init.normal_(a, std=1 / math.sqrt(a.shape[1]))


@breaks("MOD-INIT-UNIFORM", says="has standard deviation", **MODEL)
class DrawsKaimingWithoutA(Draws):
    def draw(self, a: torch.Tensor, method: str) -> None:
        if method != "xavier":
            nn.init.kaiming_uniform_(a)


@breaks("MOD-INIT-UNIFORM", says='method "kaiming"', **MODEL)
class DrawsKaimingNormal(Draws):
    def draw(self, a: torch.Tensor, method: str) -> None:
        if method == "kaiming":
            nn.init.kaiming_normal_(a, a=math.sqrt(5))


@breaks("MOD-INIT-UNIFORM", says="fourth moment", **MODEL)
class DrawsNormalOfTheRightWidth(Draws):
    def draw(self, a: torch.Tensor, method: str) -> None:
        if method != "xavier":
            nn.init.normal_(a, std=1 / math.sqrt(3 * a.shape[1]))


@breaks("MOD-INIT-UNIFORM", says="raised ValueError", **MODEL)
class KnowsNoKaiming(ChangesOptions):
    def changed(self, options: Any) -> Any:
        method = options.get("lora_A_init_method", "xavier")
        return {**options, "lora_A_init_method": "no such method" if method == "kaiming" else method}


@breaks("MOD-INIT-B", says="lora_B is not zero after initialisation", **MODEL)
class LeavesLoraBUnwritten(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        b = layer.lora_B.weight
        if not b.is_meta:
            b.data = torch.full_like(b, math.nan)  # NaN stands for uninitialised memory and is reproducible


@breaks("MOD-INIT-SEED", says="the same random lora_A", **MODEL)
class DrawsFromAFixedSeed(Draws):
    def draw(self, a: torch.Tensor, method: str) -> None:
        a.normal_(std=math.sqrt(2 / sum(a.shape)), generator=torch.Generator().manual_seed(0))


@breaks("MOD-INIT-SEED", says="twice gave different lora_A", **MODEL)
class DrawsFromItsOwnGenerator(Draws):
    generator = torch.Generator().manual_seed(5)

    def reset(self) -> None:
        self.generator.manual_seed(5)

    def draw(self, a: torch.Tensor, method: str) -> None:
        a.normal_(std=math.sqrt(2 / sum(a.shape)), generator=self.generator)


def _assigning(layer: Any, method: str) -> None:
    a, b = torch.empty_like(layer.lora_A.weight), torch.zeros_like(layer.lora_B.weight)
    nn.init.xavier_normal_(a) if method == "xavier" else nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    layer.lora_A.weight, layer.lora_B.weight = nn.Parameter(a), nn.Parameter(b)


@breaks("MOD-INIT-AGAIN", says="a new Parameter at lora_A.weight", source="pytorch/torchtune #1909 (SD5)", **MODEL)
@breaks("MOD-OPTIMIZER", says="its Parameters are gone", source="pytorch/torchtune #1909 (SD5)", **MODEL)
class InitialisesByAssignment(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(layer, init_lora_weights=_assigning)


def _lora_A_alone(layer: Any, method: str) -> None:
    with torch.no_grad():
        if method == "xavier":
            nn.init.xavier_normal_(layer.lora_A.weight)
        else:
            nn.init.kaiming_uniform_(layer.lora_A.weight, a=math.sqrt(5))


@breaks("MOD-INIT-AGAIN", says="lora_B is not zero", **MODEL)
@breaks("MOD-META-INIT", says="lora_B is not zero", **MODEL)
class InitialisesLoraAAlone(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(layer, init_lora_weights=_lora_A_alone)


@breaks("MOD-INIT-AGAIN", says="left lora_A as it was", **MODEL)
class DoesNotDrawAgain(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(layer, init_lora_weights=lambda layer, method: nn.init.zeros_(layer.lora_B.weight))
