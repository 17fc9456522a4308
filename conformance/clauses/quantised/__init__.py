"""Adapters on frozen weights in few bits, `packed_linear` and `patch_linear_module`: numbers, gradients, memory."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="QNT",
    place=58,
    judged="adapters on frozen weights in 4 or 8 bits: formats to the bit, outputs, gradients, memory, storage",
    names="`packed_linear`, `patch_linear_module`",
    required=("packed_linear", "patch_linear_module"),
    subjects=("packed_linear", "lora_packed_linear"),
    positional={"packed_linear": 2, "lora_packed_linear": 6},
)
