"""Choices that groups other than `linear` leave to an implementation: targets by name, with clauses they must pass."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import reference
from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.baselines.model import RightMatcher, RightModel
from tests.campaigns.variants.steps_and_files import STEPS_AND_FILES


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


class LeavesConv1DWithAWarning(RightModel):
    class Matcher(RightMatcher):
        def is_linear(self, m: nn.Module) -> bool:
            return isinstance(m, nn.Linear)

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(orig_linear, nn.Linear):
            raise TypeError("expected an nn.Linear")
        return super().patch_linear_module(orig_linear, *arguments, **options)

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        left = [name for name, m in model.named_modules() if type(m).__name__ == "Conv1D"]
        warnings.warn(f"left alone: {', '.join(left)}", stacklevel=2)
        return super().apply_lora_to_linear_modules(model, peft_config)


class Unmerged:
    def merge(self) -> None:
        pass

    def unmerge(self) -> None:
        pass


class MergesBesideTheWeight(RightModel):
    """A merged layer goes on computing with its adapter."""

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        layer = super().patch_linear_module(orig_linear, *arguments, **options)
        layer.__class__ = type("Marked", (Unmerged, type(layer)), {})
        return layer


class CachesByEveryVersion(Layer):
    """The merged weight and the factor of DoRA are kept as long as no operand has changed."""

    def versions(self) -> Any:
        found = (self.weight, self.lora_A.weight, self.lora_B.weight)
        return self.scale, tuple((id(t), t._version, t.dtype) for t in found)

    def delta(self) -> Tensor:
        if getattr(self, "kept_change", (None,))[0] != self.versions()[1][1:]:
            self.kept_change = self.versions()[1][1:], super().delta().detach()
        return self.kept_change[1]

    def forward(self, x: Tensor) -> Tensor:
        if self.merged or self.use_dora or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or self.dropout:
            return super().forward(x)
        if getattr(self, "kept_weight", (None,))[0] != self.versions():
            self.kept_weight = self.versions(), self.weight + self.delta()
        return nn.functional.linear(x, self.kept_weight[1], self.bias)


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
    "leaves Conv1D alone, with a warning": (
        LeavesConv1DWithAWarning(),
        ("MOD-CONV1D", "MOD-CONV1D-STEP", "MOD-ARCH-COUNT", "MOD-ARCH-FREEZE"),
    ),
    "merges beside the weight": (MergesBesideTheWeight(), ("MOD-MERGE-OWN",)),
    "keeps the merged weight until an operand changes": (
        Right(CachesByEveryVersion),
        ("LAY-MEM-REFILL", "LAY-MODE-INFERENCE", "MRG-REFILL", "MRG-WEIGHT", "LAY-AMP-CHANGED"),
    ),
    "drops DoRA's update before the rows are rescaled": (DropsTheUpdateBeforeRescaling, ("DORA-DROP",)),
    "clips by torch": (ClipsByTorch, ("TRN-CLIP", "TRN-NORM")),
    **STEPS_AND_FILES,
}
