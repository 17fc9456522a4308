"""Known-bad twins of sharded checkpoint: a sharded checkpoint holds only the part of one rank."""

from __future__ import annotations

import torch

import reference
from reference.sharded import local_part
from tests.baselines.distributed import distributed_breaks


@distributed_breaks("DIS-CKP", says="saved on 2 ranks and loaded on")
class SavesThePartOfOneRank(reference.LinearLoRA):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        from torch.distributed.tensor import DTensor, Replicate

        weight = destination[prefix + "weight"]
        whole, part = torch.zeros(weight.shape, dtype=weight.dtype), local_part(weight).detach()
        whole[: part.shape[0], : part.shape[1]] = part
        destination[prefix + "weight"] = DTensor.from_local(whole, weight.device_mesh, [Replicate()], run_check=False)
