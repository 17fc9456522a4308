"""The training step of `reference.training` with faster parts."""

from torch import nn

import reference
from optimized.gradnorm import clip_grad_norm_
from optimized.hybrid import CustomLinear
from reference.layer_replacement import replace_linear_layers


class LoraTraining(reference.LoraTraining):
    """`reference.LoraTraining`, with `optimized.CustomLinear` and `optimized.clip_grad_norm_`."""

    clip_grad_norm = staticmethod(clip_grad_norm_)
    custom_linear = CustomLinear

    @staticmethod
    def replace_layers_with_custom(model: nn.Module, skip_first: bool = True) -> None:
        """As in the reference."""
        replace_linear_layers(model, CustomLinear, int(skip_first))
