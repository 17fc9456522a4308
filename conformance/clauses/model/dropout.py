"""Dropout of a patched layer: on after train(), off after eval(), whatever the mode when it was patched."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from conformance.cases.seeding import seed_torch
from conformance.clauses.model.target_calls import PATCH, PatchCase, patch, patched
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import LinearOracle
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

RATES = (0.5, 0.25, 0.1)
DROPPED = PATCH.narrowed(dropout=RATES, position=("post", "pre"), m=(2, 3, 17), lead=("2d",))
PROBE = DROPPED.narrowed(m=(64,), k=(64,), n=(64,), r=(64,), values=("normal",), bias=(False,), scale=(2.0,))


@clause(
    "MOD-DROP-EVAL",
    sentence="A layer patched in eval mode applies no dropout, even if eval() is not called again.",
    cases=DROPPED.narrowed(training=(False,)),
    feature="dropout",
    dtypes=("float32",),
)
def test_patched_in_eval(subject: Subject, case: PatchCase) -> float | None:
    operands = subject.operands(case)
    position = placed(subject, case).position
    instance = patched(subject, operands, dropout=case.dropout, dropout_position=position)
    return judge(instance.forward(), LinearOracle(operands).y)


@clause(
    "MOD-DROP-RATE",
    sentence="In training a patched layer drops with the given probability p and divides the kept values by 1-p.",
    cases=PROBE.narrowed(training=(True, False)),
    feature="dropout",
    dtypes=("float32",),
)
def test_rate(subject: Subject, case: PatchCase) -> None:
    layer = probe(subject, case)
    layer.train()  # the layer may have been patched in eval mode
    require_rate(layer, case)


@clause(
    "MOD-DROP-MODE",
    sentence="Each call of train() or eval() on the model that holds a patched layer turns its dropout on or off.",
    cases=PROBE.narrowed(training=(True, False)),
    feature="dropout",
    dtypes=("float32",),
)
def test_mode(subject: Subject, case: PatchCase) -> None:
    model = nn.Sequential(probe(subject, case))
    for training in (False, True, False):
        model.train(training)
        y = run(model, case)
        share = float((y == 0).float().mean())
        require(
            (share > 0) == training,
            f"after train({training}) of the model {share:.0%} of the update is dropped: "
            f"expected {'some' if training else 'none'} with dropout={case.dropout}",
        )


@clause(
    "MOD-DROP-POSITION",
    sentence="""With dropout_position="pre" dropout acts on the features of x: where x has one feature, a token's
    whole update is kept or dropped. With "post" it acts on each output element separately.""",
    cases=PROBE.narrowed(k=(1,), r=(1,), n=(64,), training=(True,)),
    feature="dropout",
    dtypes=("float32",),
)
def test_position(subject: Subject, case: PatchCase) -> None:
    require_position(probe(subject, case), placed(subject, case))


def placed(subject: Subject, case: PatchCase) -> PatchCase:
    """The case with a dropout position that the target supports."""
    if case.position in subject.dropout_positions:
        return case
    return dataclasses.replace(case, position=subject.dropout_positions[0])


def probe(subject: Subject, case: PatchCase) -> Any:
    """A patched layer with W = 0, A = B = I (ones at r = 1) and scale 2: for x = 1 its output is twice the mask."""
    case = placed(subject, case)
    base = nn.Linear(case.k, case.n, bias=False).to(subject.device).train(case.training)
    nn.init.zeros_(base.weight)
    options = {"dropout": case.dropout, "dropout_position": case.position}
    layer = patch(subject, base, dim=case.r, alpha=2 * case.r, use_triton=case.triton, **options)
    fill_probe(layer)
    return layer


def fill_probe(layer: Any) -> None:
    """Write A = I and B = I, or all ones at r = 1, into a patched layer."""
    with torch.no_grad():
        for adapter in (adapter_of(layer, "lora_A"), adapter_of(layer, "lora_B")):
            adapter.copy_(torch.ones_like(adapter) if min(adapter.shape) == 1 else torch.eye(*adapter.shape))


def run(module: Any, case: PatchCase) -> torch.Tensor:
    """The output for 64 tokens of ones, with the random state seeded by the case."""
    layer: Any = module[0] if isinstance(module, nn.Sequential) else module
    seed_torch(case.seed)
    with calling_quietly("the forward pass"):
        y: torch.Tensor = module(torch.ones(64, adapter_of(layer, "lora_A").shape[1], device=layer.weight.device))
    return y.detach().float().cpu()


def require_rate(layer: Any, case: PatchCase) -> None:
    """Require that a probe in training drops the right share and scales the kept values by 1/(1-p)."""
    y, p = run(layer, case), case.dropout
    share = float((y == 0).float().mean())
    allowed = 6 * math.sqrt(p * (1 - p) / y.numel())
    require(
        abs(share - p) <= allowed,
        f"{share:.1%} of the update is dropped with dropout={p} in training: not {p:.1%} ± {allowed:.1%}",
    )
    kept, expected = y[y != 0], 2 / (1 - p)
    off = float((kept - expected).abs().max())
    require(off <= 1e-5 * expected, f"kept values are off {expected:.6g} = update/(1-p) by {off:.3g}")


def require_position(layer: Any, case: PatchCase) -> None:
    """Require that a probe of rank 1 with one feature draws its mask at the case's dropout position."""
    y = run(layer, case)
    together = bool((y == y[:, :1]).all())
    require(
        together == (case.position == "pre"),
        f'dropout_position="{case.position}" with one feature, r = 1: a token\'s outputs are dropped '
        f"{'all together' if together else 'one by one'}, as the other position does",
    )
