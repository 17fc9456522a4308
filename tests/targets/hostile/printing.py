"""A target that prints a megabyte on import and in every call; with dropout it raises a message of megabytes."""

import os
import sys
import warnings

import right

NOISE = "noise " * 45_000 + "\n"


def shout():
    for stream in (sys.stdout, sys.stderr):
        stream.write(NOISE)
    for descriptor in (1, 2):
        os.write(descriptor, NOISE.encode())


def lora_linear(*operands, dropout=0.0, **options):  # noqa: ARG001
    shout()
    warnings.warn(NOISE, stacklevel=1)
    if dropout:
        raise ValueError(NOISE * 8)
    return right.lora_linear(*operands)


shout()
