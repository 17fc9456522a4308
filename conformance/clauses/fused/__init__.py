"""Fused blocks of three LoRA layers: `lora_qkv` and `lora_mlp`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="FUS",
    place=50,
    judged="blocks of three layers over one x: every output and gradient, no cross-talk, each activation",
    names="`lora_qkv`, `lora_mlp`",
    required=("lora_qkv", "lora_mlp"),
    subjects=("lora_qkv", "lora_mlp"),
    positional={"lora_qkv": 4, "lora_mlp": 5},
)
