"""Known-bad twins of expert choice: other modules are adapted, counted, trained or ranked than the config says."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from tests.baselines.expert_modules import RightModules
from tests.known_bad import breaks

ONE = ("float32",)


class Changes(RightModules):
    """A target that reads its config with one mistake."""

    def changed(self, config: Any) -> dict[str, Any]:
        """The fields that it reads wrongly."""
        raise NotImplementedError

    def apply_lora_to_linear_modules(self, model, peft_config):
        changed = dataclasses.replace(peft_config, **self.changed(peft_config))
        return super().apply_lora_to_linear_modules(model, changed)


@breaks("EXP-APPLY-NAMES", says="by target_parameters", dtypes=ONE, source="the last component alone compared")
class MatchesTheLastComponent(Changes):
    def changed(self, config):
        return {"target_parameters": [pattern.rpartition(".")[2] for pattern in config.target_parameters]}


@breaks("EXP-APPLY-NAMES", says="modules were adapted", dtypes=ONE, source="projections counted, not modules")
class CountsProjections(RightModules):
    def apply_lora_to_linear_modules(self, model, peft_config):
        super().apply_lora_to_linear_modules(model, peft_config)
        return sum(len(getattr(module, "lora_A", ())) for module in model.modules() if hasattr(module, "scales"))


@breaks("EXP-APPLY-NAMES", says="were adapted by", dtypes=ONE, source="default targets beside target_parameters")
class AdaptsLinearModulesToo(Changes):
    def changed(self, config):
        return {"target_modules": ["*_proj"]}


@breaks("EXP-APPLY-FROZEN", says="requires grad after target_parameters", dtypes=ONE, source="a router that is trained")
class TrainsTheRouter(RightModules):
    def apply_lora_to_linear_modules(self, model, peft_config):
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter.requires_grad_(True)
        return count


@breaks("EXP-APPLY-BOTH", says="expected 4", dtypes=ONE, source="target_parameters read only without target_modules")
class IgnoresExpertsBesideLinearModules(Changes):
    def changed(self, config):
        return {"target_parameters": []} if config.target_modules else {}


class Silent(RightModules):
    """A target that does not warn."""

    def apply_lora_to_linear_modules(self, model, peft_config):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().apply_lora_to_linear_modules(model, peft_config)


@breaks("EXP-APPLY-NONE", says="no warning names", dtypes=ONE, phrase="adapts nothing for a pattern, without a word")
class SaysNothingOfAPattern(Silent):
    pass


@breaks("EXP-APPLY-LEFT", says="no warning names", dtypes=ONE, phrase="leaves experts out, without a word")
class SaysNothingOfExperts(Silent):
    pass


@breaks("EXP-APPLY-RANK", says="the rank of", dtypes=ONE, source="an option that is not read")
class IgnoresRankScaling(Changes):
    def changed(self, config):
        return {"moe_rank_scaling": False}


@breaks("EXP-APPLY-RANK", says="expected the scale", dtypes=ONE, source="alpha scaled with the rank")
class ScalesAlphaToo(Changes):
    def changed(self, config):
        return {"alpha": config.alpha / 2 if config.moe_rank_scaling else config.alpha}


@breaks("EXP-APPLY-RANK", says="expected the scale", dtypes=ONE, source="vllm-project/vllm #55545")
class IgnoresRsLoRAForExperts(Changes):
    def changed(self, config):
        return {"use_rslora": False}


@breaks("EXP-APPLY-REFUSED", says="expected a ValueError", dtypes=ONE, source="a rank that is rounded down")
class RoundsTheRank(Changes):
    def changed(self, config):
        return {"dim": config.dim - config.dim % 2}


@breaks("EXP-APPLY-REFUSED", says="for use_dora", dtypes=ONE, source="DoRA that experts ignore")
class IgnoresDoRA(Changes):
    def changed(self, config):
        return {"use_dora": False}
