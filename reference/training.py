"""One training step of a LoRA model whose frozen linear products may run on a server."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .gradnorm import clip_grad_norm_
from .hybrid import CustomLinear
from .layer_replacement import replace_linear_layers
from .step_state import StepState


class LoraTraining(nn.Module):
    """A LoRA model with its loss, gradients and optimiser step: a call trains on one micro-batch.

    The model's frozen linear layers, except the first ones, become `CustomLinear`s.

    Args:
        inference_model: a model, usually with adapters (some layer has lora_A and lora_B); changed in place.
        loss_fn: see `update_training_parameters`, which may replace it.
        n_layers_to_skip_for_backprop: how many of the first linear layers stay as they are, because their inputs need
            no gradient: 1 in most models, 3 where q, k and v take the embeddings.
    Attributes:
        inference_model: the model.
        optimizer, lr_scheduler, loss_fn, gradient_accumulation_steps, max_grad_norm: see
            `update_training_parameters`; initially None, None, None, 1 and None.
        calibrate: see `toggle_calibrate`; initially False.   run_optimizer: see `toggle_run_optimizer`; initially
            False.
    Warns:
        UserWarning: for a model without a LoRA layer, of which only other trainable parameters are trained.
    Raises:
        ValueError: if n_layers_to_skip_for_backprop is not an int of at least 0.
    Source: Concrete ML `LoraTraining`.
    """

    clip_grad_norm = staticmethod(clip_grad_norm_)  # a faster variant of this class overrides both
    custom_linear = CustomLinear

    def __init__(
        self, inference_model: nn.Module, *, loss_fn: Any = None, n_layers_to_skip_for_backprop: int = 1
    ) -> None:
        super().__init__()
        skipped = n_layers_to_skip_for_backprop
        if isinstance(skipped, bool) or not isinstance(skipped, int) or skipped < 0:
            raise ValueError(f"n_layers_to_skip_for_backprop = {skipped!r}: expected an int of at least 0")
        if not has_lora_layers(inference_model):
            warnings.warn(
                f"{type(inference_model).__name__} has no LoRA layer, one with lora_A and lora_B: "
                f"only its other trainable parameters are trained",
                stacklevel=2,
            )
        self.inference_model = inference_model
        if skipped == 1:
            self.replace_layers_with_custom(inference_model, skip_first=True)
        else:
            replace_linear_layers(inference_model, self.custom_linear, skipped)
        self.calibrate = False
        self.run_optimizer = False
        self.optimizer: Any
        self.lr_scheduler: Any
        self.loss_fn: Any
        self.gradient_accumulation_steps: int
        self.max_grad_norm: float | None
        self.update_training_parameters(loss_fn=loss_fn)

    @staticmethod
    def replace_layers_with_custom(model: nn.Module, skip_first: bool = True) -> None:
        """Replace the frozen linear layers of a model by `CustomLinear`s that share their tensors, in place.

        Eligible layers are nn.Linear itself and transformers' Conv1D, outside adapters, and the base product of a
        `LinearLoRA`: that layer gets ``base_layer = CustomLinear(weight, bias)`` and keeps its adapter. Hooks,
        training flag, and the names and tensors of the state_dict stay. A module with two names is replaced once,
        under both.

        Args:
            model: a module that is not itself a linear layer.
            skip_first: leave out the first eligible layer in registration order, whose input usually needs no
                gradient. If its input does need one, autograd still computes it here; a remote layer cannot.
        Warns:
            UserWarning: naming a layer with a frozen weight and a trainable bias, which no longer gets a gradient,
                and a subclass of nn.Linear, which is left alone.
        Raises:
            ValueError: naming a linear layer whose weight is packed, adapted or not; the model is then unchanged.
        Source: Concrete ML `LoraTraining.replace_layers_with_custom`.
        """
        replace_linear_layers(model, CustomLinear, int(skip_first))

    def update_training_parameters(
        self,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        loss_fn: Any = None,
        training_args: Mapping[str, Any] | object | None = None,
    ) -> None:
        """Set the optimiser, scheduler, loss and options of a step; omitted ones return to their defaults.

        Args:
            optimizer: an object with ``step()``, or None.
            lr_scheduler: an object with ``step()``, called after the optimiser's, or None.
            loss_fn: ``loss_fn(output, labels) -> loss``; with None the model returns the loss.
            training_args: a dict or a namespace. Only ``gradient_accumulation_steps`` (int ≥ 1, default 1) and
                ``max_grad_norm`` (a number, not negative; default None: no clipping) are used.
        Raises:
            ValueError: for values out of range.
        """

        def get(key: str, default: Any) -> Any:
            if isinstance(training_args, Mapping):
                return training_args.get(key, default)
            return getattr(training_args, key, default)

        steps, max_norm = get("gradient_accumulation_steps", 1), get("max_grad_norm", None)
        check_training_arguments(steps, max_norm)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        # An nn.Module is not registered as a child, because its buffers are not part of the model's state.
        object.__setattr__(self, "loss_fn", loss_fn)
        self.gradient_accumulation_steps = steps
        self.max_grad_norm = max_norm

    def toggle_calibrate(self, enable: bool = True) -> None:
        """Turn calibration on or off; while it is on, a call clears the gradients and never steps."""
        self.calibrate = enable

    def toggle_run_optimizer(self, enable: bool = True) -> None:
        """Turn the optimiser on or off; while it is on, and calibration off, a call ends with clipping and a step."""
        self.run_optimizer = enable

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor | None]:
        """Compute the loss of a micro-batch, *run backward*, and, if configured, clip, step and zero gradients.

        ``loss = loss_fn(model(x), labels) / gradient_accumulation_steps``; its gradients are accumulated. A call that
        raises, wherever it does, leaves parameters, gradients, buffers, the states of optimiser and scheduler, and
        random states as they were before it, so that it can be repeated.

        Args:
            inputs: ``(x, labels)``; x is a tensor, a tuple of tensors or a dict of keyword arguments. Other
                forms are ``(x1, x2, …, labels)`` and a dict with the key ``labels``. The inputs are not modified.
        Returns:
            (loss, grad_norm). The loss is a scalar, divided as above, and still requires grad. grad_norm is
            the norm before clipping if this call clipped, else None.
        Raises:
            ValueError: if there is no loss (``The model did not return a loss …``) or if no
                trainable parameter of the model contributes to it.
        """
        args, kwargs, labels = _split(inputs)
        before = StepState(self.inference_model)
        try:
            loss = self._loss(args, kwargs, labels) / self.gradient_accumulation_steps
            self._backward(loss)
            return loss, self._finish(before)
        except BaseException:
            before.restore()
            raise

    def loss_of(self, inputs: Any) -> Tensor:
        """The loss of a batch, detached and not divided; nothing else happens."""
        args, kwargs, labels = _split(inputs)
        return self._loss(args, kwargs, labels).detach()

    def _finish(self, before: StepState) -> Tensor | None:
        """After backward: clear the gradients while calibrating, or clip, step and clear them; return the norm."""
        grad_norm = None
        if self.calibrate:
            self.inference_model.zero_grad()
        elif self.run_optimizer:
            if self.max_grad_norm is not None:
                grad_norm = self.clip_grad_norm(self.inference_model.parameters(), self.max_grad_norm)
            before.add_steppers(self.inference_model, self.optimizer, self.lr_scheduler)
            if self.optimizer is not None:
                self.optimizer.step()
            if self.lr_scheduler is not None:
                self.lr_scheduler.step()
            self.inference_model.zero_grad()
        return grad_norm

    def _loss(self, args: tuple[Any, ...], kwargs: dict[str, Any], labels: Any) -> Tensor:
        if self.loss_fn is not None:
            output = self.inference_model(*args, **kwargs)
            logits = _entry(output, "logits")
            loss = self.loss_fn(output if logits is None else logits, labels)
            source = "loss_fn"
        else:
            if not _accepts_labels(self.inference_model):
                raise ValueError(
                    f"The model did not return a loss: the forward of {type(self.inference_model).__name__} "
                    f"takes no labels; expected one that does, or a loss_fn"
                )
            output = self.inference_model(*args, **kwargs, labels=labels)
            loss = _entry(output, "loss")
            if loss is None and isinstance(output, tuple | list) and output and not hasattr(output, "_fields"):
                loss = output[0]
            source = "model"
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(
                f"The {source} did not return a loss: expected a scalar tensor (of a model as output.loss, "
                f"output['loss'] or, in a tuple without names, output[0]) but got {got}"
            )
        return loss

    def _backward(self, loss: Tensor) -> None:
        """Accumulate the gradients; refuse a loss that reaches no trainable parameter."""
        reached: list[Tensor] = []
        trainable: list[Any] = [p for p in self.inference_model.parameters() if p.requires_grad]
        handles = [p.register_post_accumulate_grad_hook(reached.append) for p in trainable]
        try:
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            for handle in handles:
                handle.remove()
        if not reached:
            raise ValueError(
                f"the loss is detached from all {len(trainable)} trainable parameters of the model: "
                f"nothing would be trained"
            )


def check_training_arguments(steps: Any, max_norm: Any) -> None:
    """Refuse a number of steps that is not an int of at least 1, and a largest norm that is negative or NaN."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"gradient_accumulation_steps = {steps!r}: expected an int of at least 1")
    if max_norm is not None and not max_norm >= 0:
        raise ValueError(f"max_grad_norm = {max_norm!r}: expected a number, not negative, or None")


def has_lora_layers(model: nn.Module) -> bool:
    """Whether a layer of a model exposes lora_A and lora_B, or lora_embedding_A and _B, in any case."""
    for module in model.modules():
        names = {key.lower() for held in (vars(module), module._parameters, module._modules) for key in held}
        if {"lora_a", "lora_b"} <= names or {"lora_embedding_a", "lora_embedding_b"} <= names:
            return True
    return False


def _split(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional arguments, keyword arguments and labels of a batch, which is not modified."""
    if isinstance(inputs, Mapping) and "labels" in inputs:
        return (), {key: value for key, value in inputs.items() if key != "labels"}, inputs["labels"]
    if isinstance(inputs, Mapping) or not isinstance(inputs, tuple | list) or len(inputs) < 2:
        raise ValueError(f"inputs is a {type(inputs).__name__}: expected (x, labels), or a dict with labels")
    *x, labels = inputs
    if len(x) == 1 and isinstance(x[0], Mapping):
        return (), dict(x[0]), labels
    if len(x) == 1 and isinstance(x[0], tuple | list):
        return tuple(x[0]), {}, labels
    return tuple(x), {}, labels


def _entry(output: Any, key: str) -> Any:
    """``output.key`` or ``output[key]``, or None."""
    return output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)


def _accepts_labels(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return "labels" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
