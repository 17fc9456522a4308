"""Rows that choose their expert, `lora_grouped_linear`, and modules of experts, `patch_moe_module`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="EXP",
    place=55,
    judged="a layer for each expert: rows routed, idle, absent and permuted; every gradient",
    names="`lora_grouped_linear`, `lora_grouped_linear_sorted`",
    required=("lora_grouped_linear",),
    subjects=("lora_grouped_linear", "lora_grouped_linear_sorted", "patch_moe_module"),
    alone={"patch_moe_module": "adapters on the experts of a module: layouts, gates, router weights, state, choice"},
    positional={"lora_grouped_linear": 7, "lora_grouped_linear_sorted": 7, "patch_moe_module": 5},
)
