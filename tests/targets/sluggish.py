"""A target that drops the scale, and takes the time that SLUGGISH says, so that a run of it can be cut off."""

import os
import time

import unscaled


def lora_linear(*operands, **options):
    time.sleep(float(os.environ.get("SLUGGISH", "0.01")))
    return unscaled.lora_linear(*operands, **options)
