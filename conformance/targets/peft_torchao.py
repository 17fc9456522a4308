"""PEFT on torchao, int8, fp8 and int4: `loraspec run conformance.targets.peft_torchao --group quantised`."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from conformance.targets import packed_peft
from conformance.targets.packed_formats import check_format, check_sizes
from conformance.targets.wrapped_layer import library, version_of

WRITTEN_FOR = ("torchao", "0.18.0", "pip install --no-deps torchao")
with library(*WRITTEN_FOR), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the import says which kernels for a GPU are not there
    from torchao.quantization import (
        Float8Tensor,
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerBlock,
        PerGroup,
        PerTensor,
        quantize_,
    )

CONFORMANCE = {
    **packed_peft.declared("int8_torchao", "fp8", "int4"),
    "name": "peft on torchao",
    "version": f"{version_of('peft')}+torchao.{version_of('torchao')}",
}
FORMATS = ("int8_torchao", "fp8", "int4")
INT4: Any = torch.int4  # type: ignore[attr-defined]
CONFIGS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # for `merge`; transformers keeps it on the model


def packed_linear(
    linear: nn.Linear,
    format: str,  # noqa: A002
    *,
    compute_dtype: torch.dtype | None = None,
    block_size: tuple[int, int] | None = None,
    group_size: int = 32,
    zero: bool = True,
) -> nn.Module:
    """A copy of an nn.Linear whose weight torchao has packed.

    Args:
        zero: torchao stores a zero point for each group of int4 in any case.
    Raises:
        NotImplementedError: for what torchao does not have; it computes in the weight's dtype.
        ValueError: for a format or a block size that cannot be.
    """
    del zero
    check_format(format, FORMATS, "torchao")
    n, k = linear.out_features, linear.in_features
    check_sizes("group_size", group_size, linear, (group_size,), (k,) if format == "int4" else ())
    if block_size is not None:
        check_sizes("block_size", block_size, linear, tuple(block_size), (n, k))
    if compute_dtype not in (None, linear.weight.dtype):
        raise NotImplementedError(f"compute_dtype = {compute_dtype}: torchao computes in {linear.weight.dtype}")
    layer = packed_peft.copied(linear)
    if format == "fp8" and block_size is not None:  # the configuration of weights alone has rows only
        packed = Float8Tensor.from_hp(layer.weight.detach(), granularity=_granularity(block_size, linear))
        layer.weight = nn.Parameter(packed, requires_grad=False)
        return layer
    config = {
        "fp8": Float8WeightOnlyConfig(),
        "int8_torchao": Int8WeightOnlyConfig(),
        "int4": IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(group_size)),
    }[format]
    quantize_(layer, config)
    CONFIGS[layer] = config
    return layer


def _granularity(block_size: tuple[int, int], linear: nn.Linear) -> Any:
    whole = tuple(block_size) == (linear.out_features, linear.in_features)
    return PerTensor() if whole else PerBlock(list(block_size))


def _loaded(base: nn.Module) -> dict[str, Any]:
    """As in a model that transformers has loaded with a TorchAoConfig."""
    config = CONFIGS.get(base, Float8WeightOnlyConfig())
    chosen = SimpleNamespace(get_apply_tensor_subclass=lambda: config)
    return {"hf_quantizer": SimpleNamespace(quantization_config=chosen)}


patch_linear_module = packed_peft.patching(_loaded)


def packed_fields(module: nn.Module) -> dict[str, Any]:
    """The storage of a layer in the fields of `reference`, read from torchao's tensors."""
    weight: Any = packed_peft.base_of(module).weight.data
    codes, scale = weight.qdata, weight.scale
    fields = {"codes": codes, "scale": scale}
    options: dict[str, Any] = {}
    if codes.dtype == torch.float8_e4m3fn:
        name, options = "fp8", {"block_size": tuple(weight.block_size)}
    elif type(weight).__name__ == "Int8Tensor":
        name, fields = "int8_torchao", {"codes": codes, "scale": scale.flatten()}
    else:
        name, options = "int4", {"group_size": weight.block_size[1], "zero": True}
        fields["zero"] = weight.zero_point
    return {"format": name, "shape": tuple(weight.shape), "options": options, "fields": fields}


@torch.no_grad()
def dequantize_weight(module: nn.Module) -> Tensor:
    """The numbers [N, K] of a layer by torchao's own `dequantize`, float32."""
    return packed_peft.base_of(module).weight.dequantize().float()  # type: ignore[no-any-return]
