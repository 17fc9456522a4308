"""A linear product that runs as its model's mode says: in floats, in integers, encrypted, or on a server."""

import enum
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encrypted.encryption import Backend, ConcreteBackend, Keys, noise_of
from ..encrypted.noise import PARAMETER_SETS, EncryptionParameters, check_range, noise_std, simulate
from ..hybrid import BackwardModuleLinear, Conv1D, CustomLinear, ForwardModuleLinear
from ..quantization import Quantized, QuantizedLinear
from .client import TIMEOUT, RemoteClient, check_seconds

COMPARED = 1024  # values of a weight that each call compares with those that were compiled
ROWS_AT_ONCE = 64  # rows in one ciphertext: bounds memory and a request's size, and lets a long run show progress


class HybridFHEMode(enum.Enum):
    """What a remote module computes; the whole model follows one mode.

    - torch: the float module.
    - calibrate: the float module, recording the range of its inputs; before compiling.
    - disable: the quantised module, in the clear.
    - simulate: the quantised module as the encrypted one computes it, with its noise and its wrap.
    - execute: encryption, evaluation and decryption in this process.
    - remote: the same, evaluated by a server that never sees a secret key or an input.
    """

    TORCH = "torch"
    CALIBRATE = "calibrate"
    DISABLE = "disable"
    SIMULATE = "simulate"
    EXECUTE = "execute"
    REMOTE = "remote"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"mode {value!r}: expected one of {', '.join(mode.value for mode in cls)}")


@dataclass
class Split:
    """What the remote modules of one model share.

    Only encryption needs the backend's library; compiling and simulating need its parameters alone.
    """

    chosen: str | Backend
    model_name: str
    server: str | None
    verbose: int
    timeout: float = TIMEOUT
    noise_seed: int | None = None
    mode: HybridFHEMode = HybridFHEMode.TORCH
    keys: Keys | None = None
    noise_drawn: int = 0  # how many products were simulated so far, each with noise of its own

    def __post_init__(self) -> None:
        if isinstance(self.chosen, str) and self.chosen not in PARAMETER_SETS:
            raise ValueError(f"backend = {self.chosen!r}: expected one of {', '.join(PARAMETER_SETS)}, or a Backend")
        check_seconds("timeout", self.timeout)
        if self.noise_seed is None:
            self.noise_seed = int(torch.randint(2**63 - 1, ()))
        if isinstance(self.noise_seed, bool) or not isinstance(self.noise_seed, int) or self.noise_seed < 0:
            raise ValueError(f"noise_seed = {self.noise_seed!r}: expected an int, at least 0, or None")

    @property
    def parameters(self) -> EncryptionParameters:
        """The backend's parameters."""
        return PARAMETER_SETS[self.chosen] if isinstance(self.chosen, str) else self.chosen.parameters

    @cached_property
    def backend(self) -> Backend:
        """What encrypts; made when first needed."""
        return ConcreteBackend(self.chosen) if isinstance(self.chosen, str) else self.chosen

    @cached_property
    def client(self) -> RemoteClient:
        """The way to the server."""
        assert self.server is not None
        return RemoteClient(self.server, self.timeout)

    def noise_std(self, weight: Tensor) -> Tensor:
        """The deviation of the noise in products by an integer weight."""
        if isinstance(self.chosen, str):  # its library may not be installed
            return noise_std(self.parameters, weight)
        return noise_of(self.chosen, weight)

    def next_noise(self) -> torch.Generator:
        """What the noise of one more product is drawn from: by the seed and how many there were before."""
        seed: Any = self.noise_seed
        mixed = np.random.SeedSequence(seed, spawn_key=(self.noise_drawn,)).generate_state(1, np.uint64)
        self.noise_drawn += 1
        return torch.Generator().manual_seed(int(mixed[0] >> 1))


class RemoteModule(nn.Module):
    """A linear product in the place of the module that it takes over, computed as its model's mode says.

    Args:
        private_module: a `ForwardModuleLinear`, a `BackwardModuleLinear`, an nn.Linear or a Conv1D.
        module_name: its name in the model.
    Attributes:
        private_module: the float module; None once its weight was cleared.
        module_name: as given.
        quantized: the compiled `QuantizedLinear`, or None. A weight or bias that changed since is an error where
            autograd counts the change, or one of 1024 values spread over it differs; a write through ``.data`` to
            none of these goes unnoticed.
        input_range: (low, high) of all inputs while calibrating, or None.
    Raises:
        ValueError: for another module.
    Source: Concrete ML `RemoteModule`.
    """

    quantized_linear = QuantizedLinear  # a faster variant of this class overrides it

    def __init__(self, private_module: nn.Module, module_name: str, split: Any) -> None:
        super().__init__()
        self.out_features, self.in_features = product_of(private_module, module_name)[0].shape
        self.private_module: nn.Module | None = private_module
        self.module_name = module_name
        self.split: Split = split
        self.quantized: QuantizedLinear | None = None
        self.input_range: tuple[float, float] | None = None
        self.noise_std: Tensor | None = None
        self._compiled_from: list[_Version] | None = None
        self.train(private_module.training)
        hooked: Any = self
        hooked.register_state_dict_post_hook(_without_wrapper)
        hooked.register_load_state_dict_pre_hook(_with_wrapper)

    def forward(self, x: Tensor) -> Tensor:
        """``x Wᵀ + b`` in this module's mode: [*, K] → [*, N], in the dtype of the float product.

        Raises:
            ValueError: if x does not have K features, or has NaN or infinite elements in a quantised mode.
            RuntimeError: if the mode needs what is not there yet; if x needs a gradient that no module gives.
        """
        mode = self.split.mode
        if mode is not HybridFHEMode.TORCH and torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                f"{self.module_name} runs remotely and its input needs a gradient, which it cannot give: make it a "
                f"CustomLinear (LoraTraining.replace_layers_with_custom), or leave it out of module_names"
            )
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"{self.module_name}: x is {list(x.shape)}: its last dimension must be {self.in_features}")
        if mode in (HybridFHEMode.TORCH, HybridFHEMode.CALIBRATE):
            if self.private_module is None:
                raise RuntimeError(f"{self.module_name}: mode {mode.value} needs the weight, which was cleared here")
            if mode is HybridFHEMode.CALIBRATE:
                self._observe(x)
            return self.private_module(x)  # type: ignore[no-any-return]
        with torch.no_grad():
            return self._in_integers(x, self._compiled(), mode)

    def compiled(self, n_bits: int, dynamic: bool) -> tuple[QuantizedLinear, Tensor]:
        """This module in integers, and the noise that its encrypted products will have; changes nothing.

        Raises:
            ValueError: if its weight is not finite, or its products could wrap.
            RuntimeError: if the weight was cleared; if static quantisation saw no input.
        """
        if self.private_module is None:
            raise RuntimeError(f"{self.module_name} cannot be compiled: its weight was cleared here")
        if not dynamic and self.input_range is None:
            raise RuntimeError(
                f"{self.module_name} has seen no input to take its range from: calibrate with inputs that reach it "
                f"(a backward module: a LoraTraining with labels), or use dynamic quantization"
            )
        weight, bias = product_of(self.private_module, self.module_name)
        try:
            quantized = self.quantized_linear(weight, bias, n_bits, None if dynamic else self.input_range)
            assert quantized.weight is not None
            std, bits = self.split.noise_std(quantized.weight.cpu()), self.split.parameters.bits
            check_range(quantized.largest_accumulator, std, bits, n_bits=n_bits, features=self.in_features)
        except ValueError as error:
            raise ValueError(f"{self.module_name}: {error}") from error
        return quantized, std

    def take(self, quantized: QuantizedLinear, std: Tensor | None) -> None:
        """Run as this from now on."""
        self.quantized, self.noise_std, self.input_range = quantized, std, None
        self._compiled_from = None if self.private_module is None else _versions(self.private_module)

    def clear(self) -> None:
        """Forget the weight, float and quantised: only remote is left."""
        assert self.quantized is not None
        self.quantized.clear()
        self.private_module = self._compiled_from = None

    def _observe(self, x: Tensor) -> None:
        if not x.numel():
            return
        low, high = float(x.min()), float(x.max())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise ValueError(f"{self.module_name}: x has elements that are NaN or infinite: expected none")
        before = self.input_range or (low, high)
        self.input_range = min(before[0], low), max(before[1], high)

    def _compiled(self) -> QuantizedLinear:
        if self.quantized is None:
            raise RuntimeError(f"{self.module_name} is not compiled: call compile_model before this mode")
        if self.private_module is not None and self._compiled_from is not None:
            now = _versions(self.private_module)
            for name, was, here in zip(("weight", "bias"), self._compiled_from, now, strict=True):
                if was.differs(here):
                    raise RuntimeError(
                        f"the {name} of {self.module_name} has changed since compile_model: compile again"
                    )
        return self.quantized

    def _in_integers(self, x: Tensor, quantized: QuantizedLinear, mode: HybridFHEMode) -> Tensor:
        kind = x.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast and x.dtype != torch.float64 else x.dtype
        quantized.to(x.device)
        clamped = quantized.clamped
        try:
            y = self._product(quantized, x.reshape(-1, self.in_features), mode, dtype)
        except ValueError as error:
            raise ValueError(f"{self.module_name}: {error}") from error
        if clamped := quantized.clamped - clamped:
            warnings.warn(
                f"{self.module_name}: {clamped} of {x.numel()} input elements lie outside the calibrated range "
                f"{list(quantized.input_range or ())} and were clamped to it",
                stacklevel=2,
            )
        return y.reshape(*x.shape[:-1], self.out_features)

    def _product(self, quantized: QuantizedLinear, x: Tensor, mode: HybridFHEMode, dtype: torch.dtype) -> Tensor:
        if mode is HybridFHEMode.DISABLE:
            return quantized(x, dtype)
        rows = quantized.quantize(x)
        if mode is HybridFHEMode.SIMULATE:
            raw = self._with_noise(quantized.accumulate(rows.values))
        else:
            raw = self._encrypted(quantized, rows, mode).to(x.device)
        return quantized.recover(raw, rows).to(dtype)

    def _with_noise(self, raw: Tensor) -> Tensor:
        """What decryption would give for these integer products."""
        assert self.noise_std is not None
        bits = self.split.parameters.bits
        # drawn on the CPU: the same noise on every device
        return simulate(raw.cpu(), self.noise_std, bits, self.split.next_noise()).to(raw.device)

    def _encrypted(self, quantized: QuantizedLinear, x: Quantized, mode: HybridFHEMode) -> Tensor:
        split, parts = self.split, []
        if mode is HybridFHEMode.EXECUTE and quantized.weight is None:
            raise RuntimeError(f"{self.module_name}: mode execute needs the weight, which was cleared here")
        if split.keys is None:
            split.keys = split.backend.keygen()
        evaluation = split.keys.evaluation
        blocks = torch.split(x.values.cpu(), ROWS_AT_ONCE)
        for rows in _shown(blocks, self.module_name, split.verbose):
            if not len(rows):
                continue
            ciphertext = split.backend.encrypt(rows, split.keys)
            if mode is HybridFHEMode.EXECUTE:
                assert quantized.weight is not None
                result = split.backend.evaluate(ciphertext, quantized.weight.cpu(), evaluation)
            else:
                result = split.client.evaluate(split.model_name, self.module_name, ciphertext, evaluation)
            parts.append(split.backend.decrypt(result, len(rows), self.out_features, split.keys))
        return torch.cat(parts) if parts else x.values.new_zeros(0, self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, mode={self.split.mode.value}"


@dataclass(frozen=True, eq=False)
class _Version:
    """A weight or a bias, and what changes when its values do; moving it to a device does not.

    Writing through ``.data`` leaves no trace in autograd's count of changes: some of the values are compared.
    """

    tensor: Tensor | None
    count: int = 0
    dtype: torch.dtype | None = None
    some: Tensor | None = None

    @classmethod
    def of(cls, tensor: Tensor | None) -> "_Version":
        if tensor is None:
            return cls(None)
        if tensor.is_meta:
            return cls(tensor, tensor._version, tensor.dtype)
        return cls(tensor, tensor._version, tensor.dtype, _some_of(tensor.detach()).cpu())

    def differs(self, now: "_Version") -> bool:
        if self.tensor is not now.tensor or (self.count, self.dtype) != (now.count, now.dtype):
            return True
        if self.some is None or now.some is None:
            return self.some is not now.some
        return not torch.equal(self.some, now.some)


def _some_of(t: Tensor) -> Tensor:
    """Elements of a tensor, spread over its rows and columns; all of a small one. A copy."""
    if t.numel() <= COMPARED:
        return t.flatten().clone()
    flat = t.view(-1) if t.is_contiguous() else t.t().view(-1) if t.t().is_contiguous() else t.reshape(-1)
    number = torch.arange(COMPARED, device=t.device)
    within = number % (t.numel() // COMPARED)  # so that it is not the same columns in every row
    return flat[number * t.numel() // COMPARED + within]


def _versions(module: Any) -> list[_Version]:
    """Weight and bias of a product."""
    bias = None if isinstance(module, BackwardModuleLinear) else module.bias
    return [_Version.of(module.weight), _Version.of(bias)]


def product_of(module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """The product that a module computes, ``y = x Mᵀ + b``: M [N, K] and b.

    Raises:
        ValueError: naming the module, if it computes something else.
    """
    weight: Any = getattr(module, "weight", None)
    bias: Any = getattr(module, "bias", None)
    if isinstance(module, ForwardModuleLinear):
        return (weight.t() if module.weight_transposed else weight), bias
    if isinstance(module, BackwardModuleLinear):
        return (weight if module.weight_transposed else weight.t()), None
    if isinstance(module, Conv1D):
        return weight.t(), bias
    if type(module) is nn.Linear:
        return weight, bias
    hint = ""
    if isinstance(module, CustomLinear):
        hint = ": name its forward_module and its backward_module"
    elif hasattr(module, "lora_A"):
        hint = ": its adapter stays with the client; name the modules of its base_layer"
    raise ValueError(
        f"{name} is a {type(module).__name__}: expected a ForwardModuleLinear, a BackwardModuleLinear, an nn.Linear "
        f"or a Conv1D{hint}"
    )


def _without_wrapper(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    """A checkpoint has the names of the model before it was split."""
    inner = f"{prefix}private_module."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _with_wrapper(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}private_module.{key.removeprefix(prefix)}"] = state.pop(key)


def _shown(blocks: Any, name: str, verbose: int) -> Iterator[Any]:
    """The blocks, with a progress bar if asked for."""
    if not verbose:
        yield from blocks
        return
    from rich.progress import track

    yield from track(blocks, description=name, transient=True)
