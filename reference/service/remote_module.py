"""A linear product in the mode of its model: in floats, in integers, encrypted, or on a server."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..encrypted.answer_check import AnswerCheck, weight_digest
from ..encrypted.envelope import EncryptionError
from ..encrypted.noise import check_range, simulate
from ..hybrid import BackwardModuleLinear
from ..quantization import Quantized, QuantizedLinear
from .encrypted_input import EncryptedBlock
from .linear_product import product_of
from .product_progress import shown_progress
from .shared_state import HybridFHEMode, Split
from .weight_version import Version, versions


class RemoteModule(nn.Module):
    """A linear product that replaces a module and computes in the mode of its model.

    Args:
        private_module: a `ForwardModuleLinear`, a `BackwardModuleLinear`, an nn.Linear or a Conv1D.
        module_name: its name in the model.
    Attributes:
        private_module: the float module; None once its weight was cleared.
        module_name: as given.
        quantized: the compiled `QuantizedLinear`, or None. A later change of the weight or bias is an error if
            autograd counts it, or if it affects one of 1024 sampled values; other writes through ``.data`` are not
            detected.
        input_range: (low, high) of all inputs seen while calibrating, or None.
        is_backward: whether it computes a gradient.
        is_unused: whether no gradient reached it when a static range was taken, as in the first layers of a model; it
            is then not compiled, and a gradient that does reach it is an error.
    Raises:
        ValueError: for another module.
    Source: Concrete ML `RemoteModule`.
    """

    quantized_linear = QuantizedLinear  # a faster variant of this class overrides it

    def __init__(self, private_module: nn.Module, module_name: str, split: Any) -> None:
        super().__init__()
        self.out_features, self.in_features = product_of(private_module, module_name)[0].shape
        self.private_module: nn.Module | None = private_module
        self.is_backward = isinstance(private_module, BackwardModuleLinear)
        self.is_unused = False
        self.module_name = module_name
        self.split: Split = split
        self.quantized: QuantizedLinear | None = None
        self.input_range: tuple[float, float] | None = None
        self.noise_std: Tensor | None = None
        self._compiled_from: list[Version] | None = None
        self._check: AnswerCheck | None = None
        self._digest: str | None = None
        self.train(private_module.training)
        hooked: Any = self
        hooked.register_state_dict_post_hook(_without_wrapper)
        hooked.register_load_state_dict_pre_hook(_with_wrapper)

    def __getattr__(self, name: str) -> Any:
        """The float module's weight and bias, which PEFT reads for the norm of DoRA and changes when it merges."""
        if name not in ("weight", "bias"):
            return super().__getattr__(name)
        if self.private_module is None:
            raise AttributeError(
                f"{self.module_name} has no {name} here, because save_and_clear_private_info or load_client cleared "
                f"it: expected DoRA or merging on a model that still has its weights"
            )
        return getattr(self.private_module, name)

    def forward(self, x: Tensor) -> Tensor:
        """``x Wᵀ + b`` in this module's mode: [*, K] → [*, N], in the dtype of the float product.

        Raises:
            ValueError: if x does not have K features, or has NaN or infinite elements in a quantised mode.
            RuntimeError: if the module is not compiled, or has no weight, as the mode needs; if x needs a gradient,
                which this module cannot compute.
        """
        mode = self.split.mode
        if mode is not HybridFHEMode.TORCH and torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                f"{self.module_name} runs remotely and its input needs a gradient, which it cannot compute: make it a "
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
        """The quantised module, and the deviation of the noise in its encrypted products; this module is unchanged.

        Raises:
            ValueError: if its weight is not finite, or its products could wrap.
            RuntimeError: if the weight was cleared, or static quantisation saw no input.
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
        """Use this quantised module and noise from now on."""
        self.quantized, self.noise_std, self.input_range, self.is_unused = quantized, std, None, False
        self._compiled_from = None if self.private_module is None else versions(self.private_module)
        self._check = self._digest = None

    def hold(self, check: AnswerCheck, digest: str) -> None:
        """Use a saved check of answers, and the digest of the weight that the server has."""
        self._check, self._digest = check, digest

    @property
    def answer_check(self) -> AnswerCheck:
        """The check of the answers to this module, made from its weight when first needed."""
        if self._check is None:
            assert self.quantized is not None
            assert self.quantized.weight is not None
            assert self.noise_std is not None
            self._check = AnswerCheck.of(self.quantized.weight, self.noise_std)
        return self._check

    @property
    def digest(self) -> str:
        """The digest of the integer weight, see `weight_digest`."""
        if self._digest is None:
            assert self.quantized is not None
            assert self.quantized.weight is not None
            self._digest = weight_digest(self.quantized.weight)
        return self._digest

    def leave_out(self) -> None:
        """Do not use this module: no gradient reached it."""
        self.quantized, self.noise_std, self.input_range, self.is_unused = None, None, None, True

    def clear(self) -> None:
        """Delete the float and the quantised weight; only mode remote remains, whose answers are still checked."""
        if self.is_unused:
            self.private_module = self._compiled_from = None
            return
        assert self.quantized is not None
        self.hold(self.answer_check, self.digest)
        self.quantized.clear()
        self.private_module = self._compiled_from = None

    @property
    def noise_position(self) -> tuple[int, int]:
        """The position of the noise of mode simulate, which all remote modules of a model share."""
        return self.split.noise_position

    @noise_position.setter
    def noise_position(self, position: tuple[int, int]) -> None:
        self.split.noise_position = position

    def _observe(self, x: Tensor) -> None:
        if not x.numel():
            return
        low, high = float(x.min()), float(x.max())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise ValueError(f"{self.module_name}: x has elements that are NaN or infinite: expected none")
        before = self.input_range or (low, high)
        self.input_range = min(before[0], low), max(before[1], high)

    def _compiled(self) -> QuantizedLinear:
        if self.is_unused:
            raise RuntimeError(
                f"{self.module_name} got no gradient when compile_model took the ranges, but gets one now: compile "
                f"with inputs whose gradients reach it, or use dynamic quantization"
            )
        if self.quantized is None:
            raise RuntimeError(f"{self.module_name} is not compiled: call compile_model before this mode")
        if self.private_module is not None and self._compiled_from is not None:
            now = versions(self.private_module)
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
        """The simulated result of decryption for these integer products."""
        assert self.noise_std is not None
        bits = self.split.parameters.bits
        # The noise is drawn on the CPU, so that it is the same on every device.
        return simulate(raw.cpu(), self.noise_std, bits, self.split.next_noise()).to(raw.device)

    def _encrypted(self, quantized: QuantizedLinear, x: Quantized, mode: HybridFHEMode) -> Tensor:
        split, values, parts = self.split, x.values.cpu(), []
        if mode is HybridFHEMode.EXECUTE and quantized.weight is None:
            raise RuntimeError(f"{self.module_name}: mode execute needs the weight, which was cleared here")
        if not len(values):
            return values.new_zeros(0, self.out_features)
        try:
            if mode is HybridFHEMode.REMOTE:
                split.check_served({self.module_name: self.digest})
            given = split.encrypted(values, self.module_name)
            blocks = torch.split(values, split.rows_at_once)
            with shown_progress(self.module_name, len(values), split.verbose) as advance:
                for i, rows in enumerate(blocks):
                    if i == len(given.blocks):
                        given.blocks.append(split.encrypt(rows, self.out_features))
                    answer, sent, came = self._answer(quantized, rows, given.blocks[i], mode)
                    parts.append(answer)
                    advance(len(rows), sent, came)
        except BaseException:
            split.forget()  # no server sees a second reaction under the same keys
            raise
        return torch.cat(parts)

    def _answer(
        self, quantized: QuantizedLinear, rows: Tensor, block: EncryptedBlock, mode: HybridFHEMode
    ) -> tuple[Tensor, int, int]:
        """The decrypted and checked product of encrypted rows, and the bytes that were sent and came for it."""
        split, keys = self.split, block.keys
        up = 0 if block.sent else len(block.ciphertext)
        if mode is HybridFHEMode.EXECUTE:
            assert quantized.weight is not None
            what = self.module_name
            result = split.backend.evaluate(block.ciphertext, quantized.weight.cpu(), keys.evaluation)
        else:
            what = f"evaluate {split.model_name}/{self.module_name} at {split.client.address}"
            measure = getattr(split.backend, "result_bytes", None)
            size = None if measure is None else measure(block.ciphertext, self.out_features)
            name, sent = block.name, block.sent
            result = split.client.evaluate(
                split.model_name, self.module_name, block.ciphertext, keys.evaluation, size=size, name=name, sent=sent
            )
            block.sent = True
        try:
            answer = split.backend.decrypt(result, len(rows), self.out_features, keys)
            self.answer_check.verify(rows, answer)
        except EncryptionError as error:
            raise EncryptionError(f"{what}: {error}") from error
        return answer, up, len(result)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, mode={self.split.mode.value}"


def _without_wrapper(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    """Give a checkpoint the names of the model before the split."""
    inner = f"{prefix}private_module."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _with_wrapper(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}private_module.{key.removeprefix(prefix)}"] = state.pop(key)
