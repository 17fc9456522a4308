"""LoRA as functions: `lora_linear` and `LoRATritonFunction.apply`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="LIN",
    place=10,
    judged="the formula and its gradients as functions",
    names="`lora_linear`, `LoRATritonFunction`",
    required=("lora_linear",),
    subjects=("lora_linear", "LoRATritonFunction"),
    positional={"lora_linear": 6},
)
