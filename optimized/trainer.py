"""The training over epochs of `reference.trainer` with faster parts."""

import reference
from optimized.split_model import HybridFHEModel
from optimized.training import LoraTraining


class LoraTrainer(reference.LoraTrainer):
    """`reference.LoraTrainer`, with `optimized.LoraTraining` and `optimized.HybridFHEModel`."""

    training_class, hybrid_class = LoraTraining, HybridFHEModel
