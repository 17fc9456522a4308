"""A target that, with dropout, leaves the call by KeyboardInterrupt, sys.exit or os._exit."""

import os
import sys

import right


def lora_linear(*operands, dropout=0.0, dropout_position="post", training=False):
    if dropout and not training:
        raise KeyboardInterrupt
    if dropout == 1:
        sys.exit(0)
    if dropout:
        os._exit(0)
    return right.lora_linear(*operands, dropout=dropout, dropout_position=dropout_position, training=training)
