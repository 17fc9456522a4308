"""Shared code of the targets of libraries: a guarded import, and a wrapper that gives a layer this project's names."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


def version_of(distribution: str) -> str:
    """The installed version of a distribution; empty if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


@contextmanager
def library(distribution: str, written_for: str, install: str) -> Iterator[None]:
    """A region in which a target imports the names of its library, with errors that say what to install.

    Args:
        distribution: the library's name for pip.   written_for: the version for which the target is written.
        install: the command that installs it.
    Raises:
        ModuleNotFoundError: if a module is missing, with the command.
        ImportError: if a name is missing or does not take the target's arguments, with both versions.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        said = f"the target of {distribution} needs {error.name}: {install}"
        raise ModuleNotFoundError(said, name=error.name) from error
    except (ImportError, AttributeError, TypeError) as error:
        found = version_of(distribution) or "not installed"
        raise ImportError(
            f"the target of {distribution} is written for {written_for}, and {found} is another API: {error}"
        ) from error


def check(layer: Callable[..., Any], *, bias: bool = True) -> None:
    """Build a small layer and read the attributes that the suite uses; the random state stays the same.

    Args:
        bias: whether the library's layer may have a bias.

    Raises:
        AttributeError, TypeError: if the library no longer has an attribute; `library` explains the error.
    """
    with torch.random.fork_rng(devices=[]):
        built = layer(nn.Linear(2, 3, bias=bias), dim=1, alpha=2)
        shapes = [tuple(adapter.weight.shape) for adapter in (built.lora_A, built.lora_B)]
        if shapes != [(1, 2), (3, 1)]:
            raise TypeError(f"lora_A and lora_B of rank 1 for 2 → 3 features have the shapes {shapes}")
        for name in ("weight", "bias", "scale"):
            getattr(built, name)


class WrappedLayer(nn.Module):
    """A library's layer built from a linear layer's parameters, with the adapter under this project's names.

    A subclass builds the library's layer in `wrap`, and overrides the properties whose names differ in the library.

    Attributes:
        library: the name of the library.
        dropout_positions: where the library's layer applies dropout, of `pre` and `post`; empty if it has none.
        one_dtype: whether the adapter must have the dtype of the layer.
        transposed: by `lora_A` or `lora_B` the dotted name of the library's parameter that is its transpose.
        wrapped: the library's layer.   dim, alpha: as given.
    Raises:
        NotImplementedError: if dropout at another position, or another dtype of the adapter, is asked for.
    """

    library = "the library"
    dropout_positions: tuple[str, ...] = ("pre",)
    one_dtype = False
    transposed: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        orig_linear: nn.Linear,
        dim: int = 8,
        alpha: Any = 32,
        dropout: float = 0.0,
        dropout_position: str = "post",
        lora_A_init_method: str = "xavier",  # noqa: ARG002  (a declared deviation: each library has its own)
        lora_dtype: torch.dtype | None = None,
        *,
        use_rslora: bool = False,
        use_memory_efficient_lora: bool = False,  # noqa: ARG002  (these libraries have one path)
        more: Mapping[str, bool] = MappingProxyType({}),  # options of `wrap`; as **options they would claim DoRA
    ) -> None:
        super().__init__()
        if dropout and dropout_position not in self.dropout_positions:
            expected = " and ".join(self.dropout_positions) or "none"
            raise NotImplementedError(f"dropout_position = {dropout_position!r}: {self.library} has {expected}")
        if self.one_dtype and lora_dtype not in (None, orig_linear.weight.dtype):
            raise NotImplementedError(f"lora_dtype = {lora_dtype}: the adapter has the dtype of the layer")
        self.dim, self.alpha = dim, alpha
        self.wrapped = self.wrap(orig_linear, dim, alpha, dropout, use_rslora=use_rslora, **more)
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)  # each library freezes the parameters of the whole model
        self.turned = nn.ModuleDict({name: self._turned(place) for name, place in self.transposed.items()})
        for adapter in self.adapters():
            weight = orig_linear.weight
            adapter.data = adapter.data.to(device=weight.device, dtype=lora_dtype or weight.dtype)

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **options: bool) -> Any:
        """The library's layer, with the parameters of orig_linear.

        Args:
            options: `use_rslora`, and the subclass's own.
        """
        raise NotImplementedError

    def _turned(self, place: str) -> nn.Module:
        """A module whose weight replaces the transposed parameter of the library's layer."""
        owner_name, _, name = place.rpartition(".")
        owner, holder = self.wrapped.get_submodule(owner_name), nn.Module()
        holder.weight = nn.Parameter(getattr(owner, name).detach().T.contiguous())
        owner.register_parameter(name, None)
        return holder

    def adapters(self) -> list[Tensor]:
        """The parameters that lora_dtype applies to."""
        return [self.lora_A.weight, self.lora_B.weight]

    @property
    def weight(self) -> Tensor:
        """The base layer's weight."""
        return self.wrapped.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.wrapped.bias  # type: ignore[no-any-return]

    @property
    def lora_A(self) -> Any:
        """The adapter's first matrix, as a module with a weight."""
        return self.turned["lora_A"] if "lora_A" in self.turned else as_module(self.wrapped.lora_A)

    @property
    def lora_B(self) -> Any:
        """The adapter's second matrix."""
        return self.turned["lora_B"] if "lora_B" in self.turned else as_module(self.wrapped.lora_B)

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self.wrapped.scaling)

    def forward(self, x: Tensor) -> Tensor:
        """The library's forward, with the transposed parameters in their places."""
        if not self.transposed:
            return self.wrapped(x)  # type: ignore[no-any-return]
        parameters: dict[str, Any] = {place: self.turned[name].weight.T for name, place in self.transposed.items()}
        return torch.func.functional_call(self.wrapped, parameters, (x,))  # type: ignore[no-any-return]


def as_module(adapter: Any) -> Any:
    """A matrix as a module with a weight; a module as it is."""
    return SimpleNamespace(weight=adapter) if isinstance(adapter, Tensor) else adapter
