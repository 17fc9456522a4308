"""Rows that choose their expert: `lora_grouped_linear`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="EXP",
    place=55,
    judged="a layer for each expert: rows routed, idle, absent and permuted; every gradient",
    names="`lora_grouped_linear`, `lora_grouped_linear_sorted`",
    required=("lora_grouped_linear",),
    subjects=("lora_grouped_linear", "lora_grouped_linear_sorted"),
    positional={"lora_grouped_linear": 7, "lora_grouped_linear_sorted": 7},
)
