"""A right `LoraTraining`, split into small methods; a known-bad twin overrides one of them."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import reference
from reference.step_state import StepState
from tests.known_bad import record


class Step(nn.Module):
    """One training step of a model with adapters, which runs backward itself."""

    def __init__(self, inference_model: nn.Module) -> None:
        super().__init__()
        self.check(inference_model)
        self.inference_model = inference_model
        self.replace_layers_with_custom(inference_model)
        self.calibrate = self.run_optimizer = False
        self.update_training_parameters()

    # replacement of layers

    @staticmethod
    def replace_layers_with_custom(model: nn.Module, skip_first: bool = True) -> None:
        Replacing().run(model, skip_first)

    def check(self, model: nn.Module) -> None:
        if not any(hasattr(m, "lora_A") and hasattr(m, "lora_B") for m in model.modules()):
            warnings.warn("no LoRA layer", stacklevel=3)

    # configuration

    def update_training_parameters(
        self, optimizer: Any = None, lr_scheduler: Any = None, loss_fn: Any = None, training_args: Any = None
    ) -> None:
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.loss_fn = loss_fn
        self.gradient_accumulation_steps = self.argument(training_args, "gradient_accumulation_steps", 1)
        self.max_grad_norm = self.argument(training_args, "max_grad_norm", None)

    def argument(self, args: Any, name: str, default: Any) -> Any:
        return args.get(name, default) if isinstance(args, dict) else getattr(args, name, default)

    def toggle_calibrate(self, enable: bool = True) -> None:
        self.calibrate = enable

    def toggle_run_optimizer(self, enable: bool = True) -> None:
        self.run_optimizer = enable

    # one call

    def forward(self, inputs: Any) -> tuple[Tensor, Any]:
        """Compute the loss and run backward; clip and step if configured; undo all of it if a part raises."""
        before = self.taken()
        try:
            self.norm: Any = None
            x, labels = self.unpack(inputs)
            loss = self.divide(self.loss(x, labels))
            self.differentiate(loss)
            self.finish()
        except BaseException:
            self.undo(before)
            raise
        return self.returned(loss), self.norm

    def taken(self) -> StepState:
        before = StepState(self.inference_model)
        before.add_steppers(self.inference_model, self.optimizer, self.lr_scheduler)
        return before

    def undo(self, before: StepState) -> None:
        before.restore()

    def unpack(self, inputs: Any) -> tuple[Any, Any]:
        if isinstance(inputs, dict):
            inputs = ({k: v for k, v in inputs.items() if k != "labels"}, inputs["labels"])
        return tuple(inputs)  # type: ignore[return-value]

    def run_model(self, x: Any, **labels: Any) -> Any:
        return self.inference_model(**x, **labels) if isinstance(x, dict) else self.inference_model(x, **labels)

    def loss(self, x: Any, labels: Any) -> Tensor:
        if self.loss_fn is not None:
            return self.loss_fn(self.run_model(x), labels)
        if "labels" not in inspect.signature(self.inference_model.forward).parameters:
            raise ValueError("The model did not return a loss: it takes no labels")
        return self.loss_of(self.run_model(x, labels=labels))

    def loss_of(self, output: Any) -> Tensor:
        if isinstance(output, tuple) and not hasattr(output, "_fields"):
            return output[0]
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if loss is None:
            raise ValueError("The model did not return a loss: expected output.loss, or a loss_fn")
        return loss

    def divide(self, loss: Tensor) -> Tensor:
        return loss / self.gradient_accumulation_steps

    def differentiate(self, loss: Tensor) -> None:
        trainable = [p for p in self.inference_model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, trainable, allow_unused=True) if trainable else ()
        if all(g is None for g in gradients):
            raise ValueError("the loss is detached from every trainable parameter")
        for parameter, gradient in zip(trainable, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def finish(self) -> None:
        if self.calibrate:
            self.zero()
        elif self.run_optimizer:
            self.clip()
            self.step()
            self.zero()

    def clip(self) -> None:
        if self.max_grad_norm is not None:
            self.norm = reference.clip_grad_norm_(self.inference_model.parameters(), self.max_grad_norm)

    def step(self) -> None:
        if self.optimizer is not None:
            self.optimizer.step()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()

    def zero(self) -> None:
        self.inference_model.zero_grad()

    def returned(self, loss: Tensor) -> Tensor:
        return loss


class Replacing:
    """`replace_layers_with_custom`, split into small methods."""

    def run(self, model: nn.Module, skip_first: bool) -> None:
        chosen = self.chosen(model)
        for module, names in list(chosen.items())[1 if skip_first else 0 :]:
            self.warn(module, names[0])
            self.put(model, module, names)

    def chosen(self, model: nn.Module) -> dict[Any, list[str]]:
        """Return the layers to replace, with all their names."""
        names: dict[Any, list[str]] = {}
        for name, module in self.walk(model):
            names.setdefault(module, []).append(name)
        return {
            m: found for m, found in names.items() if not self.is_adapter(found[0], m) and self.is_eligible(found[0], m)
        }

    def walk(self, model: nn.Module) -> Any:
        return model.named_modules(remove_duplicate=False)

    def is_adapter(self, name: str, module: nn.Module) -> bool:
        names = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_dropout")
        components = name.split(".")
        leaf = next(module.children(), None) is None
        return not {*names, "lora_magnitude", "lora_magnitude_vector"}.isdisjoint(components) or (
            leaf and components[-1].startswith("lora_")
        )

    def is_eligible(self, name: str, module: nn.Module) -> bool:
        if isinstance(module, reference.LinearLoRA):
            return True
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            self.warn_subclass(name, module)
            return False
        return type(module) is nn.Linear or type(module).__name__ == "Conv1D"

    def warn_subclass(self, name: str, module: nn.Module) -> None:
        warnings.warn(f"{name}, a {type(module).__name__}, is left alone", stacklevel=2)

    def warn(self, module: Any, name: str) -> None:
        if module.bias is not None and module.bias.requires_grad and not module.weight.requires_grad:
            warnings.warn(f"{name}: its trainable bias gets no gradient", stacklevel=2)

    def custom(self, module: Any) -> Any:
        transposed = type(module).__name__ == "Conv1D"
        return self.kept(module, reference.CustomLinear(module.weight, module.bias, transposed))

    def kept(self, module: Any, custom: Any) -> Any:
        custom.train(module.training)
        if not isinstance(module, reference.LinearLoRA):
            vars(custom).update({k: v for k, v in vars(module).items() if "hooks" in k})
            custom._is_full_backward_hook = module._is_full_backward_hook
        return custom

    def put(self, model: nn.Module, module: Any, names: list[str]) -> None:
        custom = self.custom(module)
        if isinstance(module, reference.LinearLoRA):
            module.base_layer = custom
            return
        for name in names:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, custom)


class Right:
    """A target for the group `training`; a twin overrides `training` or `replacing`."""

    training: type[Step] = Step
    replacing: type[Replacing] = Replacing
    LinearLoRA = reference.LinearLoRA

    @property
    def LoraTraining(self) -> Any:
        replacing = self.replacing

        class LoraTraining(self.training):  # type: ignore[name-defined, misc]
            __doc__ = self.training.__doc__

            @staticmethod
            def replace_layers_with_custom(model: nn.Module, skip_first: bool = True) -> None:
                replacing().run(model, skip_first)

        return LoraTraining


def step_breaks(clause: str, *, says: str, dtypes: tuple[str, ...] = ("float32",), source: str = "") -> Any:
    """Return a decorator that registers a training step class as a known-bad twin."""
    return _breaks("training", clause, says=says, dtypes=dtypes, source=source)


def replacing_breaks(clause: str, *, says: str, dtypes: tuple[str, ...] = ("float32",), source: str = "") -> Any:
    """Return a decorator that registers a `Replacing` class as a known-bad twin."""
    return _breaks("replacing", clause, says=says, dtypes=dtypes, source=source)


class RightTrainer:
    """A target with the trainer of `reference`; a twin overrides one of its classes."""

    LoraTraining = reference.LoraTraining
    LoraTrainer = reference.LoraTrainer
    LinearLoRA = reference.LinearLoRA


def trainer_breaks(clause: str, *, says: str, source: str = "") -> Any:
    """Return a decorator that registers a subclass of LoraTrainer or LoraTraining as a known-bad twin."""

    def register(kind: Any) -> Any:
        name = "LoraTrainer" if issubclass(kind, reference.LoraTrainer) else "LoraTraining"
        target = type(kind.__name__, (RightTrainer,), {name: kind})()
        record(kind.__name__, target, clause, groups=("training",), says=says, dtypes=("float32",), source=source)
        return kind

    return register


def _breaks(overridden: str, clause: str, **options: Any) -> Any:
    def register(kind: type) -> type:
        target = type(kind.__name__, (Right,), {overridden: kind})()
        record(kind.__name__, target, clause, groups=("training",), **options)
        return kind

    return register
