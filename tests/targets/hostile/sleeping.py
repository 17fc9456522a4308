"""A target that sleeps for an hour in every call."""

import time

import right


def lora_linear(*operands, **options):
    time.sleep(3600)
    return right.lora_linear(*operands, **options)
