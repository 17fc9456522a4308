"""Merging the adapters of a whole model, which no other module may notice."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .base_layer import check_mergeable
from .experts import GroupedExpertsLoRA
from .layer import LinearLoRA
from .sharded import local_part

Adapted = LinearLoRA | GroupedExpertsLoRA


def merge_adapters(model: nn.Module) -> int:
    """Merge every adapted layer of a model, see `LinearLoRA.merge`; all checks come before the first change.

    Args:
        model: changed in place; layers that are merged already stay as they are.
    Returns:
        the number of layers that this call merged.
    Raises:
        ValueError: naming the layer, if the model has no adapted layer; if a layer cannot be merged, as in
            `LinearLoRA.merge`; naming both, if another module holds the weight too, such as a tied embedding,
            which merging would change. After any error the model is unchanged.
    Source: PEFT `merge_adapter`, which changes a tied weight and warns.
    """
    layers = _adapted(model)
    waiting = {layer: name for layer, name in layers.items() if not layer.merged}
    for layer, name in waiting.items():
        if isinstance(layer, LinearLoRA):
            try:
                check_mergeable(layer)
            except ValueError as error:
                raise ValueError(f"{name or 'the model'}: {error}") from None
        for weight in ["weight"] if isinstance(layer, LinearLoRA) else layer.lora_A:
            _check_unshared(model, layer, name, weight)
    merged: list[Adapted] = []
    try:
        for layer in waiting:
            layer.merge()
            merged.append(layer)
    except BaseException:
        for layer in merged:
            layer.unmerge()
        raise
    return len(merged)


def unmerge_adapters(model: nn.Module) -> int:
    """Unmerge every merged layer of a model, see `LinearLoRA.unmerge`.

    Returns:
        the number of layers that this call unmerged.
    Raises:
        ValueError: if the model has no adapted layer.
    """
    merged = [layer for layer in _adapted(model) if layer.merged]
    for layer in merged:
        layer.unmerge()
    return len(merged)


def _adapted(model: nn.Module) -> dict[Adapted, str]:
    """The adapted layers and experts, each with its first name."""
    found = {module: name for name, module in model.named_modules() if isinstance(module, Adapted)}
    if not found:
        raise ValueError(f"{type(model).__name__} holds no adapted layer: expected a model with a LinearLoRA in it")
    return found


def _check_unshared(model: nn.Module, layer: Adapted, name: str, weight: str) -> None:
    """Refuse a layer whose weight another module outside it holds too, or a part of it."""
    held: Any = getattr(layer, weight)
    own, (start, end) = set(layer.modules()), _extent(held)
    for other, module in model.named_modules():
        if module in own:
            continue
        for key, tensor in _tensors(module):
            first, last = _extent(tensor)
            if tensor is held or (first < end and start < last):
                where = f"{other}.{key}".lstrip(".")
                raise ValueError(
                    f"{name}.{weight} and {where} share their memory: merging {name} would change "
                    f"{other or 'the model'} too; expected a weight of its own, a clone"
                )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers that a module holds itself."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _extent(tensor: Any) -> tuple[int, int]:
    """The first address of a tensor and the one after its last; both 0 without memory, as on the meta device."""
    part = local_part(tensor.detach())
    if part.is_meta or not part.numel():
        return 0, 0
    elements = sum((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True)) + 1
    return part.data_ptr(), part.data_ptr() + elements * part.element_size()
