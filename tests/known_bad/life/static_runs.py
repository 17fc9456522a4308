"""Known-bad twins of the lives of runs on static ranges, and of runs that are saved while an adapter is frozen."""

from __future__ import annotations

from typing import Any

import reference
from tests.baselines.life_run import LivedRun
from tests.baselines.life_run import run_twin as twin


@twin("LIFE-RUN-STATE", says="after", source="observers that are never reset: a second compile widens a range")
class KeepsTheRangesOfEarlierCompiles(reference.HybridFHEModel):
    def compile_model(self, x: Any, n_bits: Any = 8, use_dynamic_quantization: bool = True) -> None:
        super().compile_model(x, n_bits, use_dynamic_quantization)
        for module in self.remote_modules.values():
            if module.quantized is not None:
                module.input_range = module.quantized.input_range


@twin("LIFE-RUN-STATE", says="after mode-", source="a mode that computes the range of each batch")
class ForgetsTheRangesInModeSimulate(reference.HybridFHEModel):
    def set_fhe_mode(self, mode: Any) -> None:
        super().set_fhe_mode(mode)
        for module in self.remote_modules.values() if str(mode) == "simulate" else ():
            if module.quantized is not None:
                module.quantized.input_range = None


@twin("LIFE-RUN-STATE", says="requires grad", source="huggingface/peft: loading sets requires_grad of every adapter")
class ThawsAdaptersWhenItLoads(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        step = super().load_training(training, path)
        for name, parameter in training.inference_model.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)
        return step


@twin("LIFE-RUN-STATE", says="the optimiser has no", source="a file with the moments of trainable parameters only")
class LosesTheMomentsOfFrozenAdapters(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        step = super().load_training(training, path)
        for parameter in [p for p in training.optimizer.state if not p.requires_grad]:
            training.optimizer.state.pop(parameter)
        return step
