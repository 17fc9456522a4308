"""Known-bad twins of tensor parallel: a split layer omits a sum over the ranks, or sums twice."""

from __future__ import annotations

from torch import distributed, nn

import reference
from tests.baselines.distributed import Right, distributed_breaks, followed


def as_it_is_here(parameter):
    """Declare this rank's local gradient as replicated, without summing over the ranks."""
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
