"""Layers and the gradient norm on several ranks of `torch.distributed`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="DIS",
    place=140,
    judged="DDP, FSDP2, tensor parallelism on 1, 2 and 4 ranks: gradients, norm over shards, checkpoints, adapters",
    names="`LinearLoRA`, `clip_grad_norm_`, `colwise_parallel_lora`, `rowwise_parallel_lora`",
    required=("LinearLoRA", "clip_grad_norm_"),
    subjects=("LinearLoRA", "TritonLinearLoRA", "clip_grad_norm_"),
    cpu_only=True,  # ranks are forked, and CUDA does not survive a fork
)
