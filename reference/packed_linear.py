"""A frozen linear layer whose weight is packed, as a module."""

from typing import Any

import torch
from torch import Tensor, nn

from .packed.format import Layout
from .packed.formats import format_named
from .packed_product import output_dtype, packed_product
from .packed_weight import Description, PackedWeight, pack_weight
from .sharded import is_sharded


class PackedLinear(nn.Linear):
    """A frozen linear layer ``y = x Ŵᵀ + b`` whose storage never changes.

    Every cast (``half()``, ``to(dtype)``) reaches the bias alone: the fields keep their dtypes and bits.

    Args:
        weight: P, which stands for Ŵ [N, K]; its tensors become the layer's.
        bias: [N] or None.
        compute_dtype: the dtype of the product; None for x's, see `lora_packed_linear`.
    Attributes:
        in_features, out_features, bias, compute_dtype, format, options: as given.
        weight: uint8 [bytes, 1], the codes of P as bytes, and not [N, K]: code that reads numbers or sizes from it
            fails at once. The other fields of the format are buffers, named with ``weight_`` before.
        packed_weight: P as a `PackedWeight`, on the layer's tensors.
    Raises:
        ValueError: for a compute_dtype that is not floating point, and for a bias that is not [N].
    """

    def __init__(
        self, weight: PackedWeight, bias: Tensor | None = None, *, compute_dtype: torch.dtype | None = None
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear.__init__ would allocate a weight [N, K]
        if compute_dtype is not None and not compute_dtype.is_floating_point:
            raise ValueError(f"compute_dtype is {compute_dtype}: expected a floating point dtype or None")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias is {list(bias.shape)} but weight is {list(weight.shape)}: it must be [N]")
        self.out_features, self.in_features = weight.shape
        self.format, self.options, self.compute_dtype = weight.format, dict(weight.options), compute_dtype
        codes, *others = weight.fields
        self.weight = nn.Parameter(_as_bytes(weight.fields[codes]), requires_grad=False)
        for name in others:
            self.register_buffer(_buffer(name), weight.fields[name])
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)

    @property
    def packed_weight(self) -> PackedWeight:
        """The storage P as a `PackedWeight`, which shares the layer's tensors."""
        shape = (self.out_features, self.in_features)
        layout = self._layout()
        codes, *others = layout
        size, dtypes = layout[codes]
        if is_sharded(self.weight):
            raise ValueError(
                f"the weight of this {type(self).__name__} is sharded over ranks: expected the whole storage, which "
                f"fully_shard gathers for each forward pass, and unshard() on request"
            )
        weight = self.weight.detach()
        if weight.dtype != torch.uint8 or not weight.is_contiguous():
            raise ValueError(f"weight of a {type(self).__name__} is {weight.dtype}: expected contiguous torch.uint8")
        fields = {codes: weight.view(-1).view(dtypes[0]).view(size)}
        return Description(self.format, shape, self.options).with_fields(
            fields | {name: getattr(self, _buffer(name)) for name in others}
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers Ŵ [N, K] that the storage stands for."""
        return self.packed_weight.dequantize(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``x Ŵᵀ + b``.

        Args:
            x: [*, K], floating point.
        Returns:
            [*, N], in x's dtype; in autocast's inside a region if compute_dtype is None.
        """
        y = packed_product(x, self.packed_weight, self.bias, self.compute_dtype)
        return y.to(output_dtype(x, self.compute_dtype))

    def reset_parameters(self) -> None:
        """Refuse to draw new numbers: the storage never changes."""
        raise ValueError(f"the weight of a {type(self).__name__} is packed: it cannot be initialised again")

    def _apply(self, fn: Any, recurse: bool = True) -> "PackedLinear":
        """Move the fields without casting them."""
        names = ["weight", *(_buffer(name) for name in self._layout() if _buffer(name) in self._buffers)]
        before: dict[str, Tensor] = {name: getattr(self, name).data for name in names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            now = getattr(self, name)
            if now.dtype != tensor.dtype:
                now.data = tensor.to(now.device)
        return self

    def _layout(self) -> Layout:
        return format_named(self.format).layout((self.out_features, self.in_features), self.options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, format={self.format}, compute_dtype={self.compute_dtype}"


def packed_linear(
    linear: nn.Linear,
    format: str,  # noqa: A002 the word of the interface
    *,
    compute_dtype: torch.dtype | None = None,
    **options: Any,
) -> PackedLinear:
    """A `PackedLinear` with the weight of an nn.Linear rounded to a format, and with its bias.

    Args:
        linear: an nn.Linear, which stays as it is; the new layer shares its bias.
        format, options: as in `pack_weight`.   compute_dtype: as in `PackedLinear`.
    Raises:
        ValueError: as in `pack_weight`; for a module that is not an nn.Linear itself.
    """
    if type(linear) is not nn.Linear:
        raise ValueError(f"got a {type(linear).__name__}: expected an nn.Linear, whose output is x Wᵀ + b")
    layer = PackedLinear(pack_weight(linear.weight, format, **options), linear.bias, compute_dtype=compute_dtype)
    return layer.train(linear.training)


def _buffer(field: str) -> str:
    """The name of a field's buffer, which no attribute of an adapter has."""
    return f"weight_{field}"


def _as_bytes(codes: Tensor) -> Tensor:
    """The codes as uint8 [bytes, 1], in the same memory."""
    return codes.detach().contiguous().view(-1).view(torch.uint8).view(-1, 1)
