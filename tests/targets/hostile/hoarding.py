"""A target that, with dropout, allocates tensors without end, or asks for one allocation that is refused."""

import time

import right
import torch


def lora_linear(*operands, dropout=0.0, dropout_position="post", training=False):
    if dropout == 1:
        torch.empty(2**60)
    elif dropout:
        hoard()
    return right.lora_linear(*operands, dropout=dropout, dropout_position=dropout_position, training=training)


def hoard():
    held = []
    while True:
        held.append(torch.ones(2**22))
        time.sleep(0.02)  # leaves the memory guard time to look before the machine is full
