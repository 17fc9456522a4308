"""The names of a model's parts as before torch.compile, whose wrappers hold a module as `_orig_mod`."""

from torch import nn

WRAPPED = "_orig_mod"


def plain_name(name: str) -> str:
    """A dotted name as it is in the model that was compiled."""
    return ".".join(part for part in name.split(".") if part != WRAPPED)


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules under all their names, but for the wrappers."""
    every = model.named_modules(remove_duplicate=False)
    return [(plain_name(name), module) for name, module in every if WRAPPED not in module._modules]
