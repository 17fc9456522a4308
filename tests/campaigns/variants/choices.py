"""Choices that groups other than `linear` leave to an implementation: targets by name, with clauses they must pass."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import reference
from tests.baselines.model import RightMatcher, RightModel


class LogsItsWarnings(RightModel):
    class Matcher(RightMatcher):
        def fall_back(self) -> None:
            logging.getLogger("library").warning("no targets given: adapting *_proj")
            self.targets = ["*_proj"]

        def check(self) -> None:
            if self.everything and (self.targets or self.excludes):
                raise ValueError("target_modules and exclude_modules must be empty where match_all_linear is true")
            super().check()

    def warn_of_nothing(self, model: nn.Module) -> None:
        names = ", ".join(name for name, m in model.named_modules() if isinstance(m, nn.Linear))
        logging.getLogger("library").warning("nothing matches among %s", names)


class RefusesByOtherErrors(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(orig_linear, nn.Linear):
            raise NotImplementedError("expected an nn.Linear")
        assert options.get("dropout_position", "post") in ("pre", "post"), "pre or post"
        return super().patch_linear_module(orig_linear, *arguments, **options)


class SavesMemoryByDefault:
    @dataclass
    class PeftConfig(reference.PeftConfig):
        use_memory_efficient_lora: bool = True
        a_field_of_its_own: int = 0

        @classmethod
        def from_dict(cls, d: dict[str, Any]) -> Any:
            own = d.get("a_field_of_its_own", 0)
            known = {key: value for key, value in d.items() if key != "a_field_of_its_own"}
            efficient = known.get("use_memory_efficient_lora", True)
            options = {f.name: getattr(reference.PeftConfig.from_dict(known), f.name)
                       for f in dataclasses.fields(reference.PeftConfig)}  # fmt: skip
            return cls(**{**options, "use_memory_efficient_lora": efficient}, a_field_of_its_own=own)


class DropsTheUpdateBeforeRescaling:
    class LinearLoRA(reference.LinearLoRA):
        def forward(self, x: Tensor) -> Tensor:
            if self.lora_magnitude is None or self.dropout_position == "pre":
                return super().forward(x)
            A, B, base = self.lora_A.weight, self.lora_B.weight, nn.functional.linear(x, self.weight)
            norm = torch.linalg.vector_norm((self.weight + self.scale * (B @ A)).detach(), dim=1)
            update = nn.functional.dropout((x @ A.T) @ B.T * self.scale, self.dropout_p, self.training)
            y = self.lora_magnitude / norm * (base + update)
            return y if self.bias is None else y + self.bias


class ClipsByTorch:
    class LoraTraining(reference.LoraTraining):
        clip_grad_norm = staticmethod(torch.nn.utils.clip_grad_norm_)


CHOICES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "logs its warnings, in other words": (
        LogsItsWarnings(),
        ("MOD-NOTHING-GIVEN", "MOD-NO-MATCH", "MOD-EXCLUSIVE", "MOD-MATCHER-EXCLUSIVE"),
    ),
    "refuses by other errors": (RefusesByOtherErrors(), ("MOD-NOT-LINEAR", "MOD-POSITION")),
    "saves memory by default, and has a field of its own": (
        SavesMemoryByDefault,
        ("CFG-DEFAULTS", "CFG-VALUES", "CFG-EQUAL", "CFG-DICT"),
    ),
    "drops DoRA's update before the rows are rescaled": (DropsTheUpdateBeforeRescaling, ("DORA-DROP",)),
    "clips by torch": (ClipsByTorch, ("TRN-CLIP", "TRN-NORM")),
}
