"""Ends the process or the call by exceptions that are no errors: sys.exit, KeyboardInterrupt, os._exit."""

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
