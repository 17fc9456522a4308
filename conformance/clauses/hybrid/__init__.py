"""Linear layers with remote products: `CustomLinear`, its modules, `get_remote_names` and `LINEAR_LAYERS`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="HYB",
    place=100,
    judged="client/server modules",
    names="`CustomLinear`, `ForwardModuleLinear`, `BackwardModuleLinear`, `ForwardBackwardModule`, `get_remote_names`",
    required=("CustomLinear", "ForwardModuleLinear", "BackwardModuleLinear", "ForwardBackwardModule"),
    subjects=("CustomLinear",),
    positional={"CustomLinear": 3, "ForwardModuleLinear": 3, "BackwardModuleLinear": 2},
)
