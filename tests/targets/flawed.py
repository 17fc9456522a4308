"""A target with a defect in each of four groups; one defect raises an error whose message holds an address."""

import layered
import unscaled

import reference
from optimized import LoRATritonFunction

__all__ = ["LinearLoRA", "LoRATritonFunction", "PeftConfig", "clip_grad_norm_", "lora_linear"]
LinearLoRA = layered.LinearLoRA


def lora_linear(x, weight, bias, lora_A, lora_B, scale, *, dropout=0.0, **options):
    if dropout:
        raise ArithmeticError(f"no dropout in {object()}")
    return unscaled.lora_linear(x, weight, bias, lora_A, lora_B, scale, **options)


def clip_grad_norm_(parameters, max_norm, error_if_nonfinite=False):
    return reference.clip_grad_norm_(parameters, max_norm, error_if_nonfinite) * 0.99


class PeftConfig(reference.PeftConfig):
    @classmethod
    def from_dict(cls, values):
        return super().from_dict({key: value for key, value in values.items() if key in cls.__dataclass_fields__})
