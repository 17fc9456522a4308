"""A model split in two: a server computes its frozen linear products, on integers that may be encrypted."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .encrypted.encryption import Backend, Keys
from .hybrid import is_lora_module
from .layer import LinearLoRA
from .service import deployment, kept_tensors, peft_layers
from .service.bit_widths import bits_of
from .service.client import TIMEOUT, RemoteClient
from .service.remote_module import RemoteModule
from .service.shared_state import HybridFHEMode, Split
from .training import LoraTraining


class HybridFHEModel:
    """A model whose named linear products run remotely; everything else stays with the client.

    Args:
        model: changed in place: each named module becomes a `RemoteModule`. For training, a `LoraTraining`.
        module_names: names of linear layers, see `get_remote_names`.
        server_remote_address: ``http://host:port`` of a running `serve`, for mode remote; or a `RemoteClient`, which
            can have a token, certificates and a proxy.
        model_name: the name of the model at the server.
        verbose: 1 shows the progress of encrypted products.
        backend: "seal" (exact, packed by tokens, the fastest), "exact", "fast" or "toy" (insecure, for tests), see
            `backends.NAMED`; or a `Backend`. None: "seal" if seal-python is installed, otherwise "exact", with a
            warning when it encrypts; a model from `load_client` uses the backend that it was saved for.
        timeout: seconds that one product, or the upload of the key, may take in mode remote; see `RemoteClient`.
        noise_seed: the seed of the noise of mode simulate; two models with one seed that simulate the same products in
            the same order have the same noise. None draws a seed from torch's default generator; with a seed,
            torch's generators are neither read nor changed.
    Attributes:
        model: the model.   remote_modules: the `RemoteModule`s by name.
        keys: the `Keys`; generated when first needed, or assigned (see `Keys.load`).
        mode: the `HybridFHEMode`.
        noise_position: the seed of the noise of mode simulate and the number of products that have drawn from it; a
            model that is given it continues with the same noise. `save_training` saves it.
    Raises:
        ValueError: for a name that is not a linear layer or belongs to an adapter; for no names; for an unknown
            backend, an invalid address, time-out or seed. The model is then unchanged.
    Source: Concrete ML `HybridFHEModel`.
    """

    remote_module = RemoteModule  # a faster variant of this class overrides it

    def __init__(
        self,
        model: nn.Module,
        module_names: str | Iterable[str],
        server_remote_address: str | RemoteClient | None = None,
        model_name: str = "model",
        verbose: int = 0,
        *,
        backend: str | Backend | None = None,
        timeout: float = TIMEOUT,
        noise_seed: int | None = None,
    ) -> None:
        names = [module_names] if isinstance(module_names, str) else list(module_names)
        if not names:
            raise ValueError("module_names is empty: expected at least one name, see get_remote_names")
        deployment.check_name(model_name)
        self.model = model
        self._split = Split(backend, model_name, server_remote_address, verbose, timeout, noise_seed)
        every = dict(model.named_modules(remove_duplicate=False))
        self._clearing: deployment.Clearing | None = None  # set while cleared weights are still held elsewhere
        self.remote_modules: dict[str, RemoteModule] = {}
        made: dict[nn.Module, RemoteModule] = {}  # one per module, even if it has several names
        for name in names:
            module = _found(every, name)
            if module not in made:
                made[module] = self.remote_module(module, name, self._split)
            self.remote_modules[name] = made[module]
        for module, remote in made.items():
            for name, other in every.items():
                if other is module:  # under all its names
                    _put(model, name, remote)
            _move_hooks(module, remote)

    def compile_model(self, x: Any, n_bits: int | Mapping[str, int] = 8, use_dynamic_quantization: bool = True) -> None:
        """Run the model once on x, then quantise all remote modules, or none of them after an error.

        Args:
            x: an input of the model: a tensor, a tuple of arguments or a dict of keyword arguments; for a
                `LoraTraining`, ``(x, labels)``.
            n_bits: bits of inputs and weights, 2 to 16; or a dict of them by module name, 8 for the others.
            use_dynamic_quantization: quantise inputs row by row; otherwise over the range seen in this call and
                earlier in mode calibrate.
        Raises:
            ValueError: for n_bits out of range or of an unknown module, or an accumulator that could wrap, naming the
                module.
            RuntimeError: naming the module, if a skipped layer needs a gradient, if static quantisation saw no input of
                a module (backward modules that no gradient reaches are left out, if one reaches others), or if an
                adapter is merged into a weight, which would go to the server.
        """
        for name, module in self.model.named_modules():
            if isinstance(module, LinearLoRA) and module.merged:
                raise RuntimeError(f"{name} is merged: its adapter would go to the server; unmerge it first")
        peft_layers.check_unmerged(self.model, self.remote_modules.values())
        bits = bits_of(n_bits, self.remote_modules)
        with self._in_mode(HybridFHEMode.CALIBRATE):
            self._run_once(x)
        unused = set() if use_dynamic_quantization else self._without_gradients()
        used = {name: module for name, module in self.remote_modules.items() if name not in unused}
        compiled = {name: module.compiled(bits[name], bool(use_dynamic_quantization)) for name, module in used.items()}
        for name, (quantized, std) in compiled.items():
            self.remote_modules[name].take(quantized, std)
        for name in unused:
            self.remote_modules[name].leave_out()

    def _without_gradients(self) -> set[str]:
        """The backward modules that have seen no gradient, if any has seen one."""
        backward = {name: module.input_range for name, module in self.remote_modules.items() if module.is_backward}
        unseen = {name for name, seen in backward.items() if seen is None}
        return unseen if len(unseen) < len(backward) else set()

    def set_fhe_mode(self, mode: str | HybridFHEMode) -> None:
        """Set the mode of all remote modules, forward and backward.

        Raises:
            ValueError: for an unknown mode.   RuntimeError: if the model does not meet the needs of the mode.
        """
        mode = HybridFHEMode(mode)
        uncompiled = [name for name, m in self.remote_modules.items() if m.quantized is None and not m.is_unused]
        if mode is HybridFHEMode.CALIBRATE and not uncompiled:
            raise RuntimeError("mode calibrate comes before compile_model: this model is compiled")
        if mode not in (HybridFHEMode.TORCH, HybridFHEMode.CALIBRATE) and uncompiled:
            raise RuntimeError(f"mode {mode.value} comes after compile_model: {uncompiled[0]} is not compiled")
        cleared = [n for n, m in self.remote_modules.items() if m.quantized is not None and m.quantized.weight is None]
        if mode is not HybridFHEMode.REMOTE and cleared:
            raise RuntimeError(f"mode {mode.value} needs the weight of {cleared[0]}, which was cleared here")
        if mode is HybridFHEMode.REMOTE and self._split.server is None:
            raise RuntimeError("mode remote needs a server_remote_address: got None")
        if mode is not HybridFHEMode.TORCH:
            peft_layers.check_unmerged(self.model, self.remote_modules.values())
        self._split.mode = mode

    def __call__(self, x: Any, fhe: str | HybridFHEMode = "disable") -> Any:
        """Run the model in a mode. The model stays in that mode, so that backward uses it too.

        Args:
            x: as in `compile_model`.   fhe: the mode.
        Raises:
            ValueError, RuntimeError: as in `set_fhe_mode`.
            RemoteError: in mode remote, if the server has other integers for one of the modules.
            EncryptionError: if an answer is not the product of the inputs with the compiled weight, see `AnswerCheck`.
        """
        self.set_fhe_mode(fhe)
        if self.mode is HybridFHEMode.REMOTE:
            self._split.check_served({m.module_name: m.digest for m in self.remote_modules.values() if not m.is_unused})
        return self._run(x)

    def save_and_clear_private_info(self, path: str | Path) -> None:
        """Write ``path/server/<model_name>`` and ``path/client/<model_name>``, and delete the weights here.

        A check ensures that no tensor of this process still holds a remote weight. Only mode remote remains. The client
        keeps for each module sums of its integers, a secret vector that checks the server's answers, and the vector's
        product with the weight. Modules that do not run remotely, such as adapters and embeddings, stay as they are;
        ``path/client`` has their tensors too, so that `load_client` can start from files alone.

        This protects the weights against loss and reading here, not against the client: whoever can ask the server for
        products learns W from K of them, in any exact encryption. The files are not encrypted: ``path/server`` holds
        the weights, and ``path/client`` what is needed to forge answers.

        Raises:
            RuntimeError: before compiling, or if a module that stays here needs a weight (a shared weight, or DoRA);
                nothing is then written or cleared. After clearing, if an object outside the model, such as an
                optimiser, still holds a weight, naming it.
            FileExistsError: if one of the folders exists; nothing is then cleared.
            OSError: if a file cannot be written; neither folder then exists, and nothing is cleared.

        After any error the call can be repeated. If the weights are cleared already, it only looks for tensors that
        still hold them.
        """
        if self._clearing is not None:
            self._clearing.check()
            self._clearing = None
            return
        for name, module in self.remote_modules.items():
            if module.is_unused:
                continue
            if module.quantized is None or module.quantized.weight is None:
                raise RuntimeError(f"{name} has no compiled weight to save: compile_model comes first, and once")
        clearing = deployment.Clearing(self.model, self.remote_modules)
        deployment.save(Path(path), self._split.model_name, self.remote_modules, self._split.parameters, self.model)
        self._clear(clearing)

    def load_client(self, path: str | Path) -> None:
        """Load the client's part from ``path/client/<model_name>``, and delete the weights here.

        Tensors of the model on the meta device, but not the weights, take the values in the files; others keep theirs.

        Raises:
            ValueError: if the modules, shapes or backends differ, if the files are damaged or lack a tensor that the
                model has on the meta device. The model is then unchanged.
        """
        parts, parameters = deployment.load_client(Path(path), self._split.model_name, self.remote_modules)
        clearing = deployment.Clearing(self.model, self.remote_modules)
        kept = kept_tensors.replacements(self.model, self.remote_modules, Path(path, "client", self._split.model_name))
        self._split.adopt(parameters)
        kept_tensors.put(kept)
        for name, module in self.remote_modules.items():
            if name not in parts:
                module.leave_out()
                continue
            quantized, check, digest = parts[name]
            module.take(quantized, None)
            module.hold(check, digest)
        self._clear(clearing)

    def _clear(self, clearing: deployment.Clearing) -> None:
        clearing.clear()
        self._clearing = clearing
        clearing.check()
        self._clearing = None

    @property
    def mode(self) -> HybridFHEMode:
        """The mode of all remote modules."""
        return self._split.mode

    @property
    def noise_position(self) -> tuple[int, int]:
        """The seed of the noise of mode simulate, and the number of products that have drawn noise so far."""
        return self._split.noise_position

    @noise_position.setter
    def noise_position(self, position: tuple[int, int]) -> None:
        self._split.noise_position = position

    @property
    def keys(self) -> Keys | None:
        """The client's keys."""
        return self._split.keys

    @keys.setter
    def keys(self, keys: Keys | None) -> None:
        self._split.keys = keys
        self._split.forget()

    @contextmanager
    def _in_mode(self, mode: HybridFHEMode) -> Iterator[None]:
        before, self._split.mode = self._split.mode, mode
        try:
            yield
        finally:
            self._split.mode = before

    def _run_once(self, x: Any) -> None:
        """Calibrate: a training step that restores the gradients, or a forward pass without gradients."""
        if not isinstance(self.model, LoraTraining):
            with torch.no_grad():
                self._run(x)
            return
        before, gradients = self.model.calibrate, {p: p.grad for p in self.model.parameters()}
        self.model.toggle_calibrate(True)
        try:
            for parameter in gradients:
                parameter.grad = None
            self._run(x)
        finally:
            self.model.toggle_calibrate(before)
            for parameter, gradient in gradients.items():
                parameter.grad = gradient

    def _run(self, x: Any) -> Any:
        if isinstance(self.model, LoraTraining) or not isinstance(x, Mapping | tuple | list):
            return self.model(x)
        return self.model(**x) if isinstance(x, Mapping) else self.model(*x)


def _found(every: dict[str, nn.Module], name: str) -> nn.Module:
    if name not in every:
        near = difflib.get_close_matches(name, every, n=1)
        raise ValueError(f"the model has no module {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    if isinstance(every[name], RemoteModule):
        raise ValueError(f"{name} runs remotely already: expected a model that was not split")
    if not name:
        raise ValueError("the model itself cannot run remotely: expected the names of modules within it")
    if is_lora_module(name, every[name]):
        raise ValueError(f"{name} belongs to an adapter, which stays with the client: see get_remote_names")
    return every[name]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def _move_hooks(source: Any, target: Any) -> None:
    """Move a module's hooks; the dicts are shared, so that existing handles still remove their hooks."""
    for key, value in vars(source).items():
        if "hooks" in key and "state_dict" not in key and isinstance(value, dict):
            vars(target)[key] = value
            vars(source)[key] = type(value)()
    target._is_full_backward_hook = source._is_full_backward_hook
