"""A target that drops the scale, and takes its time, so that a run of it can be cut off."""

import time

import unscaled


def lora_linear(*operands, **options):
    time.sleep(0.01)
    return unscaled.lora_linear(*operands, **options)
