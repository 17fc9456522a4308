"""Training steps of a patched model: they change every adapter and no other parameter."""

from __future__ import annotations

import torch
from torch import nn

from conformance.cases.case import Space
from conformance.clauses.model.apply_to_model import CHOSEN, ModelCase
from conformance.clauses.model.small_models import adapters, contents, is_adapter
from conformance.clauses.model.target_calls import PatchCase, apply, patch_case
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

STEPS = Space(
    ModelCase,
    targets=tuple(CHOSEN),
    frozen=(False, True),
    training=(True,),
    dim=(2, 1, 5),
    triton=(False, True),
)


@clause(
    "MOD-STEP",
    sentence="""Two training steps of an optimiser over all parameters, with weight decay, change every adapter and
    nothing else.""",
    cases=STEPS,
    dtypes=("float32",),
    weight=0.35,
)
def test_step(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    apply(subject, model, **case.options)
    before = contents(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    tokens = torch.arange(8, device=subject.device).reshape(2, 4)
    for _ in range(2):  # lora_A changes only after lora_B is no longer zero
        with calling("a training step of the patched model"):
            _loss(model, tokens).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    for name, value in model.state_dict().items():
        moved = not torch.equal(value, before[name])
        if is_adapter(name):
            require(moved, f"two training steps left {name} as it was")
        else:
            require(not moved, f"two training steps changed {name}, which is no adapter")


def _loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten() % 5)


@clause(
    "MOD-STEP-LOSS",
    sentence="Twelve training steps of the adapters on one batch lower the loss of that batch.",
    # without triton: other clauses judge the kernels, and a dozen interpreted steps take seconds
    cases=STEPS.narrowed(targets=("", "*_proj", "head,blocks.0.fc2"), triton=(False,)),
    dtypes=("float32",),
    weight=0.25,
)
def test_step_lowers_the_loss(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    apply(subject, model, **case.options)
    trained = adapters(model)
    require(bool(trained), f"target_modules={case.targets!r} gave the model no adapter")
    optimizer = torch.optim.AdamW(trained.values(), lr=0.005)  # small steps, of which the gradient decides
    tokens = torch.arange(8, device=subject.device).reshape(2, 4)
    losses = []
    for _ in range(12):
        with calling("a training step of the patched model"):
            loss = _loss(model, tokens)
            loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    require(losses[-1] < losses[0], f"12 AdamW steps took the loss from {losses[0]:.4g} to {losses[-1]:.4g}")


@clause(
    "MOD-OPTIMIZER",
    sentence="An optimiser built right after patching still trains the layer after a later call of init_lora_weights.",
    cases=Space(
        PatchCase,
        k=(8, 3),
        n=(4, 2),
        r=(2, 1),
        how=("xavier", "uniform"),
        triton=(False, True),
        training=(True,),
    ),
    dtypes=("float32",),
    needs=("LinearLoRA.init_lora_weights",),
    weight=0.5,
)
def test_optimizer(subject: Subject, case: PatchCase) -> None:
    layer = patch_case(subject, case)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=1.0)
    with calling(f"init_lora_weights({case.how!r})"):
        layer.init_lora_weights(case.how)
    x = torch.ones(3, case.k, device=subject.device)
    with calling("a training step of the patched layer"):
        before = layer(x).detach()
        layer(x).sum().backward()
        optimizer.step()
        after = layer(x).detach()
    require(
        not torch.equal(before, after),
        "a step of an optimiser built before init_lora_weights changes nothing: its Parameters are gone",
    )
