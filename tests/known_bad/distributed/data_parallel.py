"""Known-bad twins of data parallel: a rank treats its own rows as the whole batch."""

from __future__ import annotations

import os
import time

from torch import distributed, nn

import reference
from tests.baselines.distributed import distributed_breaks


def is_first():
    return distributed.get_rank() == 0


@distributed_breaks("DIS-DDP", says="ended with exit status 3 before it was done\n         no memory left")
class LeavesOnASecondRank(reference.LinearLoRA):
    def forward(self, x):
        if not is_first():
            os.write(2, b"no memory left\n")
            os._exit(3)
        return super().forward(x)


@distributed_breaks("DIS-DDP", says="not ended within 3 s")
class NeverReturnsOnASecondRank(reference.LinearLoRA):
    def forward(self, x):
        while not is_first():
            time.sleep(0.01)
        return super().forward(x)


@distributed_breaks("DIS-DDP", says="dX on rank 0 of")
class ScalesTheLossByTheRanks(reference.LinearLoRA):
    def forward(self, x):
        y = super().forward(x)
        y.register_hook(lambda g: g * distributed.get_world_size())
        return y


@distributed_breaks("DIS-FSDP", says="the gradient of lora_A is None after backward")
class HoldsOnToItsParameter(reference.LinearLoRA):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.__dict__["held"] = self.lora_A.weight

    def forward(self, x):
        return reference.lora_linear(x, self.weight, self.bias, self.held, self.lora_B.weight, self.scale)


@distributed_breaks("DIS-EMPTY", says="the gradient of lora_A is None after backward")
class SkipsTheAdapterWithoutRows(reference.LinearLoRA):
    def forward(self, x):
        return super().forward(x) if x.shape[0] else nn.functional.linear(x, self.weight, self.bias)


@distributed_breaks("DIS-ACCUM", says="worst    dA")
class ForgetsTheFirstBatch(reference.LinearLoRA):
    def forward(self, x):
        self.lora_A.weight.grad = self.lora_B.weight.grad = None
        return super().forward(x)


@distributed_breaks("DIS-STEP", says="after 2 steps")
class ComputesWithTheFirstA(reference.LinearLoRA):
    def forward(self, x):
        A = self.lora_A.weight
        first = self.__dict__.setdefault("first", A.detach().clone())
        return reference.lora_linear(
            x, self.weight, self.bias, A + (first - A).detach(), self.lora_B.weight, self.scale
        )
