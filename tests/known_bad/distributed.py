"""Known-bad twins of group `distributed`: right on one rank, and wrong on several."""

from __future__ import annotations

import math
import os
import time

import torch
from torch import distributed, nn

import reference
from reference.sharded import local_part
from tests.baselines.distributed import Right, distributed_breaks, followed


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


def as_it_is_here(parameter):
    """The gradient of this rank alone, said to be that of all."""
    from torch.distributed.tensor import DTensor, Replicate

    local = parameter.grad.to_local()
    parameter.grad = DTensor.from_local(local, parameter.device_mesh, [Replicate()], run_check=False)


@distributed_breaks("DIS-COLWISE", says="dA on rank 0 of")
class SumsNoGradientOfA(Right):
    def colwise_parallel_lora(self, **layouts):
        def change(layer, _):
            layer.lora_A.weight.register_post_accumulate_grad_hook(as_it_is_here)

        return followed(reference.colwise_parallel_lora(**layouts), change)


@distributed_breaks("DIS-ROWWISE", says="y on rank 0 of")
class SumsNoOutput(Right):
    def rowwise_parallel_lora(self, **layouts):
        from torch.distributed.tensor import Partial

        return reference.rowwise_parallel_lora(output_layouts=Partial(), **layouts)


@distributed_breaks("DIS-ROWWISE", says="dB on rank 0 of")
class SumsNoGradientOfB(Right):
    def rowwise_parallel_lora(self, **layouts):
        def change(layer, _):
            layer.lora_B.weight.register_post_accumulate_grad_hook(as_it_is_here)

        return followed(reference.rowwise_parallel_lora(**layouts), change)


@distributed_breaks("DIS-BIAS", says="y on rank 0 of")
class AddsTheBiasOnEveryRank(Right):
    def rowwise_parallel_lora(self, **layouts):
        def change(layer, mesh):
            layer.register_forward_hook(lambda layer, _, y: y + (mesh.size() - 1) * layer.bias.to_local())

        return followed(reference.rowwise_parallel_lora(**layouts), change)


@distributed_breaks("DIS-SHARE", says="of weight [")
class KeepsAllOfTheWeight(Right):
    def colwise_parallel_lora(self, **layouts):
        def change(layer, _):
            from torch.distributed.tensor import Replicate

            layer.weight = nn.Parameter(layer.weight.redistribute(placements=[Replicate()]), requires_grad=False)

        return followed(reference.colwise_parallel_lora(**layouts), change)


@distributed_breaks("DIS-REPLICAS", says="are not those on rank 0")
class RoundsOtherwiseOnEachRank(Right):
    def colwise_parallel_lora(self, **layouts):
        def settle(parameter):
            from torch.distributed.tensor import DTensor, Replicate

            summed = parameter.grad.full_tensor() * (1 + distributed.get_rank() * 2.0**-20)
            parameter.grad = DTensor.from_local(summed, parameter.device_mesh, [Replicate()], run_check=False)

        def change(layer, _):
            layer.lora_A.weight.register_post_accumulate_grad_hook(settle)

        return followed(reference.colwise_parallel_lora(**layouts), change)


@distributed_breaks("DIS-MERGE", says="the weight after merge()")
class MergesAShareOfTheUpdate(reference.LinearLoRA):
    def merge(self):
        scale, self.scale = self.scale, self.scale / distributed.get_world_size()
        super().merge()
        self.scale = scale


def here(parameters):
    """The parameters, each as what of it is on this rank."""
    found = []
    for parameter in parameters:
        found.append(nn.Parameter(torch.zeros_like(local_part(parameter.grad))))
        found[-1].grad = local_part(parameter.grad)
    return found


@distributed_breaks("DIS-NORM", says="norm on rank 0 of")
class TakesTheNormOfItsOwnPart(Right):
    @staticmethod
    def clip_grad_norm_(parameters, max_norm, error_if_nonfinite=False):
        return reference.clip_grad_norm_(here(parameters), max_norm, error_if_nonfinite)


@distributed_breaks("DIS-NORM", says="norm on rank 0 of")
class CountsACopyOnEveryRank(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        square = reference.grad_norm(here(parameters)) ** 2
        distributed.all_reduce(square)
        norm = square.sqrt()
        for parameter in parameters:
            parameter.grad.mul_(min(1.0, max_norm / (norm.item() + 1e-6)))
        return norm


@distributed_breaks("DIS-CLIP", says="after clipping on rank 0 of")
class ClipsByTheNormOfItsOwnPart(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        norm = reference.grad_norm(parameters)
        reference.clip_grad_norm_(here(parameters), max_norm, error_if_nonfinite)
        return norm


@distributed_breaks("DIS-NORM-RANGE", says="norm on rank 0")
class SquaresInFloat32(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        norm = nn.utils.clip_grad_norm_(parameters, max_norm, error_if_nonfinite=error_if_nonfinite)
        return norm.full_tensor().float()


@distributed_breaks("DIS-NONFINITE", says="not ended within 3 s")
class RaisesWhereItIs(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        if error_if_nonfinite and not all(bool(p.grad.isfinite().all()) for p in here(parameters)):
            raise RuntimeError("a gradient is not finite")
        return reference.clip_grad_norm_(parameters, max_norm, error_if_nonfinite)


@distributed_breaks("DIS-NONFINITE", says="was modified before clip_grad_norm_ raised")
class ClipsBeforeItRaises(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        norm = reference.clip_grad_norm_(parameters, max_norm)
        if error_if_nonfinite and not math.isfinite(norm):
            raise RuntimeError(f"the norm is {norm}")
        return norm


@distributed_breaks("DIS-CKP", says="saved on 2 ranks and loaded on")
class SavesThePartOfOneRank(reference.LinearLoRA):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        from torch.distributed.tensor import DTensor, Replicate

        weight = destination[prefix + "weight"]
        whole, part = torch.zeros(weight.shape, dtype=weight.dtype), local_part(weight).detach()
        whole[: part.shape[0], : part.shape[1]] = part
        destination[prefix + "weight"] = DTensor.from_local(whole, weight.device_mesh, [Replicate()], run_check=False)
