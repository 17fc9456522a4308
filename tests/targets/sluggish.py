"""A target that ignores the scale and sleeps $SLUGGISH seconds per call, so that a test can interrupt its run."""

import os
import time

import unscaled


def lora_linear(*operands, **options):
    time.sleep(float(os.environ.get("SLUGGISH", "0.01")))
    return unscaled.lora_linear(*operands, **options)
