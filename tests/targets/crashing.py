"""A target that exits, crashes or stalls for some dropout probabilities, and ignores the scale otherwise."""

import ctypes
import os

import unscaled


def lora_linear(x, weight, bias, lora_A, lora_B, scale, *, dropout=0.0, training=False, **options):
    if dropout and not training:
        os._exit(7)
    if dropout == 1:
        stall()
    if dropout:
        ctypes.string_at(0)  # a segmentation fault
    return unscaled.lora_linear(x, weight, bias, lora_A, lora_B, scale, **options)


def stall():
    while True: pass  # fmt: skip  # noqa: E701 - one line, since the report names the line where it was stopped
