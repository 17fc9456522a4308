"""Training a split LoRA model over epochs: batches, windows of accumulation, evaluation, logs and checkpoints."""

import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import load_training, save_training
from .encrypted.encryption import Backend
from .hybrid import get_remote_names
from .service.client import RemoteClient
from .split_model import HybridFHEModel
from .step_state import StepState
from .training import LoraTraining

PROGRESS = "trainer.json"

_log = logging.getLogger(__name__)


class LoraTrainer:
    """A LoRA model in training, whose frozen linear products may run encrypted or on a server.

    Args:
        model: a model with adapters; its frozen linear layers run remotely, see `LoraTraining`.
        optimizer, loss_fn, lr_scheduler, training_args: as in `LoraTraining.update_training_parameters`.
        n_layers_to_skip_for_backprop: as in `LoraTraining`.
        eval_loader: batches to evaluate on, or None.
        eval_metric_fn: ``eval_metric_fn(model, eval_loader) -> a number or a dict of numbers``; None for the mean loss.
        logging_steps, eval_steps: optimiser steps from one log line, or evaluation, to the next.
        train_log_path: a file to which each line of `history` is appended as JSON, or None.
        checkpoint_dir: a folder for a checkpoint after each epoch, or None.
        server_remote_address, model_name, backend: as in `HybridFHEModel`.
    Attributes:
        lora_training_module: the `LoraTraining`.   hybrid_model: the `HybridFHEModel`.
        history: one dict for each log line: epoch (from 1), step, and loss, grad_norm and lr, or what was evaluated.
        epoch, step: the epochs and optimiser steps that are finished.
    Raises:
        ValueError: for numbers of steps that are not positive, and as in `LoraTraining`.
    Source: Concrete ML 1.9 `LoraTrainer`. There, epochs restart at 1 after resuming, the latest checkpoint is chosen by
        the order of strings, and a last short window of accumulation is divided by the full number of batches.
    """

    training_class, hybrid_class = LoraTraining, HybridFHEModel  # faster variants override them

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        loss_fn: Any = None,
        lr_scheduler: Any = None,
        training_args: Mapping[str, Any] | object | None = None,
        n_layers_to_skip_for_backprop: int = 1,
        eval_loader: Iterable[Any] | None = None,
        eval_metric_fn: Callable[[nn.Module, Any], Any] | None = None,
        logging_steps: int = 1,
        eval_steps: int = 10,
        train_log_path: str | os.PathLike[str] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        *,
        server_remote_address: str | RemoteClient | None = None,
        model_name: str = "model",
        backend: str | Backend | None = None,
    ) -> None:
        for name, value in (("logging_steps", logging_steps), ("eval_steps", eval_steps)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value!r}: expected an int of at least 1")
        self.lora_training_module = self.training_class(
            model, n_layers_to_skip_for_backprop=n_layers_to_skip_for_backprop
        )
        self.lora_training_module.update_training_parameters(optimizer, lr_scheduler, loss_fn, training_args)
        names = get_remote_names(self.lora_training_module)
        self.hybrid_model = self.hybrid_class(
            self.lora_training_module, names, server_remote_address, model_name, backend=backend
        )
        self.eval_loader, self.eval_metric_fn = eval_loader, eval_metric_fn
        self.logging_steps, self.eval_steps = logging_steps, eval_steps
        self.train_log_path = None if train_log_path is None else Path(train_log_path)
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.history: list[dict[str, Any]] = []
        self.epoch = self.step = 0

    def compile(
        self, inputset: Any, n_bits: int | Mapping[str, int] = 8, use_dynamic_quantization: bool = True
    ) -> None:
        """Quantise the remote products, see `HybridFHEModel.compile_model`.

        Args:
            inputset: a batch ``(x, labels)``.
        """
        self.hybrid_model.compile_model(inputset, n_bits, use_dynamic_quantization)

    def train(
        self,
        train_loader: Iterable[Any],
        num_epochs: int = 10,
        fhe: str = "simulate",
        device: str | torch.device = "cpu",
    ) -> None:
        """Train until num_epochs epochs are finished, those before `load_checkpoint` included.

        ``gradient_accumulation_steps`` batches make a window, after which the optimiser steps; the last window of an
        epoch may be shorter, and its loss is divided by the number of its own batches.

        Args:
            train_loader: batches, as in `LoraTraining.forward`; iterated once an epoch.
            num_epochs: at least as many as are finished.
            fhe: the mode, see `HybridFHEMode`.
            device: where the model and the batches go.
        Raises:
            ValueError: if num_epochs is no int or fewer epochs than are finished, or an epoch has no batch.
        """
        if isinstance(num_epochs, bool) or not isinstance(num_epochs, int) or num_epochs < self.epoch:
            raise ValueError(f"num_epochs = {num_epochs!r}: expected an int of at least {self.epoch}, as are finished")
        training = self.lora_training_module
        # Weights that were cleared are on the meta device, and stay there.
        training._apply(  # type: ignore[no-untyped-call]
            lambda tensor: tensor if tensor.is_meta else tensor.to(device)
        )
        training.train()
        while self.epoch < num_epochs:
            batches = 0
            for window in _windows(train_loader, training.gradient_accumulation_steps):
                self._train_on([_moved(batch, device) for batch in window], fhe)
                batches += len(window)
            if not batches:
                raise ValueError(f"epoch {self.epoch + 1} had no batch: expected a loader that can be iterated again")
            self.epoch += 1
            if self.checkpoint_dir is not None:
                self.save_checkpoint()

    def evaluate(self, fhe: str | None = None) -> dict[str, float]:
        """What eval_metric_fn returns, or the mean loss over eval_loader, in evaluation mode and without gradients.

        Afterwards all modes, gradients, buffers and random states are as before: a loader that shuffles draws from
        torch's generator, which would change the dropout of training.

        Args:
            fhe: the mode; None for the mode that the model is in.
        Raises:
            ValueError: without an eval_loader, or for one without a batch.
        """
        if self.eval_loader is None:
            raise ValueError("there is no eval_loader to evaluate on")
        training = self.lora_training_module
        modes = {module: module.training for module in training.modules()}
        before = StepState(training.inference_model)
        with torch.no_grad(), self.hybrid_model._in_mode(self.hybrid_model.mode):
            try:
                if fhe is not None:
                    self.hybrid_model.set_fhe_mode(fhe)
                training.eval()
                found = self._metric(training)
            finally:
                before.restore()
                for module, mode in modes.items():
                    module.training = mode
        return {key: float(value) for key, value in found.items()}

    def save_checkpoint(self) -> Path:
        """Save the run under ``checkpoint_dir/epoch-E``, with E epochs finished, and return the folder.

        Raises:
            ValueError: without a checkpoint_dir, and as in `save_training`.   OSError: if a file cannot be written.
        """
        if self.checkpoint_dir is None:
            raise ValueError("there is no checkpoint_dir to save to")
        folder = self.checkpoint_dir / f"epoch-{self.epoch}"
        save_training(self.lora_training_module, folder, self.step)
        about = {"epoch": self.epoch, "step": self.step, "history": self.history}
        temporary = folder / f".{PROGRESS}"
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / PROGRESS)  # a folder without it is not finished
        return folder

    def load_checkpoint(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Continue a saved run: `train` goes on with the epoch after it, and returns the folder.

        Args:
            path: the folder; None for the one of checkpoint_dir with the most epochs.
        Raises:
            FileNotFoundError: if there is none.   ValueError: if it is damaged or of another run, see `load_training`.
        """
        folder = self._latest() if path is None else Path(path)
        try:
            about = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
            epoch, step, history = int(about["epoch"]), int(about["step"]), list(about["history"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / PROGRESS} is damaged: {type(error).__name__}: {error}") from error
        load_training(self.lora_training_module, folder)
        self.epoch, self.step, self.history = epoch, step, history
        return folder

    def save_and_clear_private_info(self, path: str | os.PathLike[str]) -> None:
        """Write both parts of the split model, and delete the weights here, see `HybridFHEModel`."""
        self.hybrid_model.save_and_clear_private_info(Path(path))

    def _train_on(self, window: list[Any], fhe: str) -> None:
        """One optimiser step."""
        training = self.lora_training_module
        full, training.gradient_accumulation_steps = training.gradient_accumulation_steps, len(window)
        loss, norm = 0.0, None
        try:
            for i, batch in enumerate(window):
                training.toggle_run_optimizer(i == len(window) - 1)
                part, norm = self.hybrid_model(batch, fhe=fhe)
                loss += float(part.detach())
        except BaseException:
            training.inference_model.zero_grad()  # the window can be repeated as a whole
            raise
        finally:
            training.gradient_accumulation_steps = full
            training.toggle_run_optimizer(False)
        self.step += 1
        if self.step % self.logging_steps == 0:
            rate = None if training.optimizer is None else training.optimizer.param_groups[0]["lr"]
            self._record(loss=loss, grad_norm=None if norm is None else float(norm), lr=rate)
        if self.eval_loader is not None and self.step % self.eval_steps == 0:
            self._record(**self.evaluate())

    def _metric(self, training: LoraTraining) -> dict[str, Any]:
        assert self.eval_loader is not None
        if self.eval_metric_fn is not None:
            found = self.eval_metric_fn(training.inference_model, self.eval_loader)
            return (
                {f"eval_{key}": value for key, value in found.items()}
                if isinstance(found, Mapping)
                else {"eval_metric": found}
            )
        device = next(p.device for p in training.parameters() if not p.is_meta)
        losses = [training.loss_of(_moved(batch, device)) for batch in self.eval_loader]
        if not losses:
            raise ValueError("the eval_loader had no batch: expected one that can be iterated again")
        return {"eval_loss": torch.stack(losses).double().mean()}

    def _record(self, **values: Any) -> None:
        line = {"epoch": self.epoch + 1, "step": self.step, **values}
        self.history.append(line)
        _log.info("%s", ", ".join(f"{key} {value}" for key, value in line.items() if value is not None))
        if self.train_log_path is not None:
            with open(self.train_log_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _latest(self) -> Path:
        """The finished checkpoint with the most epochs."""
        folders = [] if self.checkpoint_dir is None else self.checkpoint_dir.glob("epoch-*")
        numbered = {
            int(folder.name[6:]): folder
            for folder in folders
            if re.fullmatch("epoch-[0-9]+", folder.name) and (folder / PROGRESS).exists()
        }
        if not numbered:
            raise FileNotFoundError(f"{self.checkpoint_dir} holds no checkpoint: expected epoch-N/{PROGRESS}")
        return numbered[max(numbered)]


def _windows(loader: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The batches in groups of this size; the last group may be shorter."""
    batches = iter(loader)
    while window := list(itertools.islice(batches, size)):
        yield window


def _moved(batch: Any, device: str | torch.device) -> Any:
    """A batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)([_moved(value, device) for value in batch])
    return batch
