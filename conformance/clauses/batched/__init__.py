"""Batches whose rows use different adapters: `lora_batched_linear`, and its halves `lora_shrink` and `lora_expand`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="BAT",
    place=57,
    judged="batches whose rows use different adapters: outputs, gradients, ranks and padding, stale metadata, segments",
    names="`lora_batched_linear`",
    required=("lora_batched_linear",),
    subjects=("lora_batched_linear", "lora_shrink", "lora_expand"),
    alone={
        "lora_shrink": "x Aᵀ over segments of sorted rows",
        "lora_expand": "base + s·S Bᵀ over segments of sorted rows",
    },
    positional={"lora_batched_linear": 7, "lora_shrink": 4, "lora_expand": 6},
)
