"""Training models of transformers: gradients of each layer, checkpointing, autocast, accumulation and loss curves."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from conformance.clauses.model.adapted_architectures import adapted_real, watched_in
from conformance.clauses.model.architectures import REAL, RealCase, batch, logits, loss_sum, real
from conformance.clauses.model.layer_probe import SCALE, judge_gradients, require_used
from conformance.clauses.model.small_models import adapters
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.subject import Subject

GRADIENTS = REAL.narrowed(rows=(2, 3), length=(5, 3, 8))
STEPS, WINDOW, MICRO = 12, 4, 3  # optimiser steps of a curve, rows of each step, rows of its first micro-batch
BAND = 1e-9  # relative to the first loss: far above float64 rounding (1e-16), far below any defect
FLOAT64 = ("bert", "gpt2")  # the other models compute norms and softmax in float32, whatever the dtype


def _backward(model: nn.Module, tokens: Tensor, wanted: Tensor) -> float:
    """Run backward from the summed loss, and return this loss."""
    with calling(f"forward and backward of an adapted {type(model).__name__}"):
        loss = loss_sum(logits(model, tokens), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


@clause(
    "MOD-ARCH-BWD",
    sentence="""Backward through a model gives each adapted layer the dX, dA and dB that follow from the x and g it
    receives there, and gives frozen parameters no gradient.""",
    cases=GRADIENTS,
    dtypes=("float32", "bfloat16"),
    library="transformers>=5",
    weight=0.5,
)
def test_backward_in_architectures(subject: Subject, case: RealCase) -> float | None:
    model = adapted_real(subject, case)
    with watched_in(subject, model, case) as watched:
        _backward(model, *batch(subject, case))
    require_used(watched)
    _require_frozen_without_gradient(model)
    return judge_gradients(watched, real(subject, case))


def _require_frozen_without_gradient(model: nn.Module) -> None:
    trained = adapters(model)
    for name, parameter in model.named_parameters():
        require(name in trained or parameter.grad is None, f"{name} is frozen and got a gradient")


@clause(
    "MOD-ARCH-CHECKPOINT",
    sentence="With gradient checkpointing, reentrant or not, each adapted layer's dX, dA and dB are right.",
    why="Checkpointing calls a layer twice: once for the output and once more, within backward, for the gradients.",
    cases=GRADIENTS.narrowed(arch=("llama", "bert", "qwen3", "qwen2-moe"), how=("reentrant", "not reentrant")),
    dtypes=("float32",),
    library="transformers>=5",
    weight=0.25,
)
def test_checkpointing_in_architectures(subject: Subject, case: RealCase) -> float | None:
    model: Any = adapted_real(subject, case)
    reentrant = case.how == "reentrant"
    if reentrant:  # a reentrant block needs an input that requires grad, and the embedding is frozen
        model.enable_input_require_grads()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    with watched_in(subject, model, case) as watched:
        _backward(model, *batch(subject, case))
    blocks = [name for name in case.chosen_in(subject, model) if ".layer" in name]
    require(any(len(watched.calls[name]) > 1 for name in blocks), "checkpointing recomputed no adapted layer")
    return judge_gradients(watched, real(subject, case))


@clause(
    "MOD-ARCH-AUTOCAST",
    sentence="""Under autocast to bfloat16 the adapted layers of a float32 model give the same gradients as the
    formula written with F.linear.""",
    feature="autocast",
    cases=GRADIENTS,
    dtypes=("float32",),
    library="transformers>=5",
    weight=0.25,
)
def test_autocast_in_architectures(subject: Subject, case: RealCase) -> float | None:
    model = adapted_real(subject, case)
    tokens, wanted = batch(subject, case)
    device = torch.device(subject.device).type
    with watched_in(subject, model, case) as watched:
        with calling("the forward pass under autocast"), torch.autocast(device, torch.bfloat16):
            found = logits(model, tokens)
        with calling("the backward pass after it"):
            loss_sum(found.float(), wanted).backward()  # type: ignore[no-untyped-call]
    return judge_gradients(watched, real(subject, case), autocast="bfloat16")


@clause(
    "MOD-ARCH-ACCUM",
    sentence="""Over micro-batches of unequal size gradients add up: each dA and dB is the sum over all calls of its
    layer.""",
    cases=GRADIENTS.narrowed(rows=(3, 5)),
    dtypes=("float32",),
    library="transformers>=5",
    weight=0.25,
)
def test_accumulation_in_architectures(subject: Subject, case: RealCase) -> float | None:
    model = adapted_real(subject, case)
    tokens, wanted = batch(subject, case)
    with watched_in(subject, model, case) as watched:
        for part in (slice(0, 2), slice(2, None)):
            _backward(model, tokens[part], wanted[part])
    return judge_gradients(watched, real(subject, case))


@clause(
    "MOD-ARCH-CURVE",
    sentence="""A model trained for 12 steps (AdamW, a decaying learning rate, clipping, and in each step a
    micro-batch of 3 rows and one of 1 row) has in float64 the same losses as the formula written with F.linear, to 9
    digits of the first loss.""",
    why="An error too small for one step's bounds, or one that appears only after a step, shows in the loss curve.",
    cases=REAL.narrowed(arch=FLOAT64, rows=(WINDOW,), length=(5, 3), rank=(3, 1)),
    dtypes=("float64",),
    library="transformers>=5",
    weight=0.1,
)
def test_curve_in_architectures(subject: Subject, case: RealCase) -> None:
    model, plain = adapted_real(subject, case), real(subject, case).requires_grad_(False)
    pairs = [(model.get_submodule(name), plain.get_submodule(name)) for name in case.chosen_in(subject, model)]
    formula = [parameter for theirs, ours in pairs for parameter in _updated(ours, theirs)]
    tokens, wanted = batch(subject, case)
    expected = _curve(plain, formula, tokens, wanted)
    with calling("training steps of the adapted model"):
        found = _curve(model, list(adapters(model).values()), tokens, wanted)
    if not expected[-1] < 0.9 * expected[0]:
        raise Inconclusive(f"{STEPS} steps take the loss from {expected[0]:.3g} to {expected[-1]:.3g}")
    for step, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        off = abs(mine - theirs) / expected[0]
        require(
            off <= BAND, f"the loss of step {step} is {mine:.9g}: expected {theirs:.9g}, off by {off:.2g} of the first"
        )


def _updated(plain: nn.Module, layer: Any) -> tuple[Tensor, Tensor]:
    """Make a linear layer add `s·((x Aᵀ) Bᵀ)` with copies of the adapted layer's A and B, and return the copies."""
    A, B = (adapter_of(layer, part).detach().clone().requires_grad_() for part in ("lora_A", "lora_B"))
    linear = nn.functional.linear
    plain.register_forward_hook(lambda _, args, y: y + SCALE * linear(linear(args[0], A), B))
    return A, B


def _curve(model: nn.Module, trained: list[Any], tokens: Tensor, wanted: Tensor) -> list[float]:
    """The loss over all rows of a step, before each step."""
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    losses = []
    for _ in range(STEPS):
        total = 0.0
        for part, labels in zip(torch.split(tokens, MICRO), torch.split(wanted, MICRO), strict=True):
            loss = loss_sum(logits(model, part), labels) / len(tokens)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        losses.append(total)
        nn.utils.clip_grad_norm_(trained, 0.5)  # torch's; the target's own is judged in group gradnorm
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return losses


@clause(
    "MOD-ARCH-COMPILE",
    sentence="""torch.compile of a whole adapted model leaves its loss and the gradient of every adapter unchanged, in
    float64 to 9 digits.""",
    cases=REAL.narrowed(arch=("bert",), rows=(2,), length=(5,), rank=(3,), every=(False,)),
    dtypes=("float64",),
    library="transformers>=5",
    weight=0.02,
)
def test_compile_in_architectures(subject: Subject, case: RealCase) -> None:
    torch.compiler.reset()
    model = adapted_real(subject, case)
    tokens, wanted = batch(subject, case)
    loss = _backward(model, tokens, wanted)
    expected = {name: p.grad.clone() for name, p in adapters(model).items() if p.grad is not None}
    model.zero_grad()
    compiled: Any = torch.compile(model, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's warnings while tracing say nothing about results
        found = _backward(compiled, tokens, wanted)
    require(abs(found - loss) <= BAND * loss, f"compiled, the loss is {found:.9g}: expected {loss:.9g}")
    for name, parameter in adapters(model).items():
        require(parameter.grad is not None, f"compiled, {name} gets no gradient")
        require(name in expected, f"{name} gets a gradient in the compiled model only")
        assert parameter.grad is not None
        off, largest = (parameter.grad - expected[name]).abs().max().item(), expected[name].abs().max().item()
        require(
            off <= BAND * largest, f"compiled, the gradient of {name} is off by {off:.2g}; its largest is {largest:.2g}"
        )
