"""transformers' `Trainer` as a `LoraTrainer`: `loraspec run conformance.targets.transformers_trainer`.

`Trainer.train` makes every step: windows of accumulation, clipping, schedule, logs, evaluation and checkpoints. The
target offers no `LoraTraining`, one call for each micro-batch: `Trainer.training_step` runs forward and backward alone,
and the rest of a step stands inside the loop of `Trainer.train`, which a target could only repeat in code of its own.

Options that a user sets: `max_grad_norm=0` where nothing is to be clipped (the Trainer's default clips by 1), a
constant schedule where there is no scheduler (its default decays linearly), and `loss_is_scaled_for_ga=False`, because
loss_fn gives the loss of one batch. By default the Trainer expects a loss that is divided by the items of the window,
as models of transformers give it; `conformance.targets.transformers_trainer:items` is that.
"""

from __future__ import annotations

import inspect
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.utils.data import IterableDataset

from conformance.targets.wrapped_layer import library, version_of

WRITTEN_FOR = ("transformers", "5.23.0", "pip install 'loraspec[peers]'")
with library(*WRITTEN_FOR):
    from transformers import PrinterCallback, Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    Trainer.loss_is_scaled_for_ga  # noqa: B018  (an AttributeError names both versions)

CONFORMANCE: dict[str, Any] = {
    "name": "transformers Trainer",
    "version": version_of("transformers"),
    "features": {"training_flags": "set"},  # train() in each step, eval() in each evaluation
}
__all__ = ["CONFORMANCE", "LoraTrainer", "items"]


class Batches(IterableDataset[dict[str, Any]]):
    """Batches ``(x, labels)`` as a dataset, each of whose items is a batch of keyword arguments of the model."""

    def __init__(self, held: Any, name: str) -> None:
        self.held, self.name = held, name

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for x, labels in self.held:
            yield {self.name: x, "labels": labels}

    def __len__(self) -> int:
        return len(self.held)


class LoraTrainer:
    """A `Trainer` whose batches are made by the caller.

    Attributes:
        trainer: the `Trainer`.
        scaled: the Trainer's `loss_is_scaled_for_ga`.

    Source: transformers 5.23.0, `transformers/trainer.py`.
    """

    scaled: bool | None = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        loss_fn: Callable[[Any, Tensor], Tensor] | None = None,
        lr_scheduler: Any = None,
        training_args: Mapping[str, Any] | None = None,
        *,
        eval_loader: Iterable[Any] | None = None,
        logging_steps: int = 1,
        eval_steps: int = 10,
        checkpoint_dir: str | None = None,
    ) -> None:
        given = dict(training_args or {})
        self._place = None if checkpoint_dir else tempfile.TemporaryDirectory()
        self._input = next(iter(inspect.signature(model.forward).parameters))
        self._checkpoint: str | None = None
        arguments = TrainingArguments(
            output_dir=checkpoint_dir or self._place.name,  # type: ignore[union-attr]
            gradient_accumulation_steps=given.get("gradient_accumulation_steps", 1),
            max_grad_norm=given.get("max_grad_norm") or 0.0,
            lr_scheduler_type="constant",  # of the scheduler that the Trainer makes where none is given
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            prediction_loss_only=True,
            remove_unused_columns=False,
            logging_strategy="steps",
            logging_steps=logging_steps,
            eval_strategy="no" if eval_loader is None else "steps",
            eval_steps=eval_steps,
            save_strategy="epoch" if checkpoint_dir else "no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        self.trainer = Trainer(
            model,
            arguments,
            data_collator=lambda items: items[0],
            eval_dataset=None if eval_loader is None else Batches(eval_loader, self._input),
            optimizers=(optimizer, lr_scheduler),
            compute_loss_func=None if loss_fn is None else self._compute_loss_func(loss_fn),
        )
        self.trainer.loss_is_scaled_for_ga = self.scaled
        self.trainer.remove_callback(PrinterCallback)

    def _compute_loss_func(self, loss_fn: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda out, labels, **_: loss_fn(out, labels)

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return int(self.trainer.state.epoch or 0)

    @property
    def step(self) -> int:
        """The number of steps of the optimiser."""
        return int(self.trainer.state.global_step)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The Trainer's log of steps and evaluations, without times, under the names of `reference`."""
        names = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "lr", "eval_loss": "eval_loss"}
        return [
            {"epoch": math.ceil(line["epoch"]), "step": line["step"]}
            | {name: line[key] for key, name in names.items() if key in line}
            for line in self.trainer.state.log_history
            if "loss" in line or "eval_loss" in line
        ]

    def train(self, train_loader: Any, num_epochs: int = 10) -> None:
        """Train until num_epochs epochs are finished, those before `load_checkpoint` included.

        Raises:
            NotImplementedError: after a run that was not saved, because `Trainer.train` would begin anew.
        """
        if self.epoch and self._checkpoint is None:
            raise NotImplementedError("Trainer.train begins anew: expected load_checkpoint() before a second train")
        self.trainer.train_dataset = Batches(train_loader, self._input)
        self.trainer.args.num_train_epochs = num_epochs
        self.trainer.train(resume_from_checkpoint=self._checkpoint)
        self._checkpoint = None

    def evaluate(self) -> dict[str, float]:
        """The Trainer's loss over eval_loader, as eval_loss, without its measurements of time."""
        return {"eval_loss": self.trainer.evaluate()["eval_loss"]}

    def load_checkpoint(self, path: str | None = None) -> str:
        """Continue a saved run, by default the last one in checkpoint_dir, and return its folder.

        The Trainer loads in `train`, so it is given as many epochs as are finished, and trains nothing.

        Raises:
            FileNotFoundError: if there is none.
        """
        folder = path or get_last_checkpoint(self.trainer.args.output_dir)
        if folder is None:
            raise FileNotFoundError(f"{self.trainer.args.output_dir} holds no checkpoint-STEP")
        state = json.loads(Path(folder, "trainer_state.json").read_text(encoding="utf-8"))
        epochs = round(state["epoch"])
        batches = state["global_step"] // epochs * self.trainer.args.gradient_accumulation_steps
        self.trainer.train_dataset = Batches([None] * batches, self._input)
        self.trainer.args.num_train_epochs = epochs
        self.trainer.train(resume_from_checkpoint=folder)
        self._checkpoint = folder
        return folder


class ItemsTrainer(LoraTrainer):
    """The same with the Trainer's own division: by the number of items in the window, which it counts."""

    scaled = None

    def _compute_loss_func(self, loss_fn: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
        def mean_of_items(out: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
            """The batch's part of the mean over the window; in evaluation, which has none, the loss itself."""
            return loss_fn(out, labels) / (1 if num_items_in_batch is None else num_items_in_batch)

        return mean_of_items


items = SimpleNamespace(
    CONFORMANCE=CONFORMANCE
    | {"name": "transformers Trainer, by items", "features": CONFORMANCE["features"] | {"window_loss": "items"}},
    LoraTrainer=ItemsTrainer,
)
