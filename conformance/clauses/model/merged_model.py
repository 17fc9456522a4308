"""Merging the adapters of a model: all of them, none that shares a weight, none that merging cannot represent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conformance.clauses.model.refusals import ERRORS
from conformance.clauses.model.small_models import DoublingLinear, Toy, Twice, adapted
from conformance.clauses.model.target_calls import LAYER, PatchCase, apply, linear, patch
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly, quiet, refuses
from conformance.target.subject import Subject

NEEDS = ("merge_adapters", "unmerge_adapters")
BAND = 1e-9  # relative, in float64: far above rounding (1e-15), far below any defect
TOKENS = torch.arange(8).reshape(2, 4)


@torch.no_grad()
def _filled(model: nn.Module, seed: int) -> nn.Module:
    """The adapted model with adapters that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name in adapted(model):
        for part in ("lora_A", "lora_B"):
            parameter = adapter_of(model.get_submodule(name), part)
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def _output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), calling_quietly(f"the forward of a {type(model).__name__}"):
        found: Tensor = model(x)
    return found.clone()


def _require_close(found: Tensor, expected: Tensor, what: str) -> None:
    off = (found - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    require(off <= BAND, f"{what}: the output is off by {off:.3g} of its largest value")


@clause(
    "MOD-MERGE",
    sentence="""merge_adapters merges each adapted layer of a model once, also under several names, and returns their
    number; y stays the same. unmerge_adapters restores every weight. Each of them twice equals once.""",
    cases=LAYER.narrowed(how=("toy", "shared")),
    dtypes=("float64",),
    needs=NEEDS,
    weight=0.5,
)
def test_merged_model(subject: Subject, case: PatchCase) -> None:
    torch.manual_seed(case.seed)
    model: nn.Module = Twice() if case.how == "shared" else Toy()
    model = model.double().to(subject.device).train(case.training)
    x = (torch.randn(3, 4).double() if case.how == "shared" else TOKENS).to(subject.device)
    number = apply(subject, model, match_all_linear=True, dim=case.r, use_triton=case.triton)
    before = _output(_filled(model, case.seed), x)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    for times in (number, 0):
        with calling("merge_adapters(model)"):
            count = subject.target.merge_adapters(model)
        require(count == times, f"merge_adapters returned {count!r}: expected {times}, the layers that it merged")
        _require_close(_output(model, x), before, "after merge_adapters")
    unchanged = [n for n, p in model.named_parameters() if torch.equal(p, weights[n]) and "lora" not in n]
    left = [name for name in adapted(model) if f"{name}.weight" in unchanged]
    require(not left, f"merge_adapters left the weight of {', '.join(left)} as it was")
    for times in (number, 0):
        with calling("unmerge_adapters(model)"):
            count = subject.target.unmerge_adapters(model)
        require(count == times, f"unmerge_adapters returned {count!r}: expected {times}, the layers that it unmerged")
        _require_close(_output(model, x), before, "after unmerge_adapters")
        for name, parameter in model.named_parameters():
            _require_close(parameter.detach(), weights[name], f"{name} after unmerge_adapters")


def _tied(how: str) -> Any:
    """A model whose head has the memory of another module's weight, and the name of that module."""
    model: Any = Toy(width=6)
    if how == "embedding":
        model.head = nn.Linear(6, 11)
        model.head.weight = model.embed.weight
        return model, "embed"
    if how == "linear":
        model.blocks[1].q_proj.weight = model.blocks[0].q_proj.weight
        return model, "blocks.0.q_proj"
    model.register_buffer("table", torch.randn(11, 6))
    model.head = nn.Linear(6, 5)
    model.head.weight = nn.Parameter(model.table[3:8])
    return model, "table"


@clause(
    "MOD-MERGE-TIED",
    sentence="""If another module holds the weight of an adapted layer too, or a part of it, merge_adapters raises a
    ValueError that names both, and merges no layer.""",
    why="Merging a head would change the embedding that it is tied to, and with it every later layer.",
    cases=LAYER.narrowed(how=("embedding", "linear", "view")),
    dtypes=("float64",),
    needs=NEEDS,
    weight=0.5,
)
def test_tied_weight(subject: Subject, case: PatchCase) -> None:
    torch.manual_seed(case.seed)
    model, other = _tied(case.how)
    model.double().to(subject.device)
    if case.how == "view":
        model.head.weight = nn.Parameter(model.table[3:8])  # converting the model has copied it
    apply(subject, model, match_all_linear=True, dim=case.r, use_triton=case.triton)
    _filled(model, case.seed)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    layer = "blocks.1.q_proj" if case.how == "linear" else "head"
    what = f"merge_adapters of a model in which {layer} and {other} have one weight"
    refuses(what, lambda: subject.target.merge_adapters(model), layer, other)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    require(not changed, f"{what} was refused and changed {', '.join(changed)}")


def _normed(case: PatchCase, subject: Subject) -> nn.Linear:
    layer: nn.Linear = nn.utils.parametrizations.weight_norm(linear(subject, case))
    return layer


def _spectral(case: PatchCase, subject: Subject) -> nn.Linear:
    layer: Any = nn.utils.parametrizations.spectral_norm(linear(subject, case))
    layer.eval()  # in training each access to the weight changes it
    return layer  # type: ignore[no-any-return]


def _doubling(case: PatchCase, subject: Subject) -> nn.Linear:
    return linear(subject, case, DoublingLinear)


OWN = {"own forward": _doubling, "weight_norm": _normed, "spectral_norm": _spectral}


@clause(
    "MOD-MERGE-OWN",
    sentence="""merge() of a patched layer with its own forward, or whose weight is computed, as by weight_norm, raises
    an error and leaves the layer as it is, or gives the same y in every call.""",
    why="""A forward of its own may use W in another way, and a weight that is computed again at each access loses what
    was merged.""",
    cases=LAYER.narrowed(how=tuple(OWN), k=(4, 5, 33), n=(4, 5, 3)),
    dtypes=("float64",),
    needs=("LinearLoRA.merge", "LinearLoRA.unmerge"),
    weight=0.5,
)
def test_layer_that_merging_cannot_represent(subject: Subject, case: PatchCase) -> None:
    base = OWN[case.how](case, subject).requires_grad_(False)
    layer = patch(subject, base, dim=case.r, use_triton=case.triton)
    model = _filled(nn.Sequential(layer), case.seed)
    x = torch.randn(3, case.k, generator=torch.Generator().manual_seed(case.seed)).double().to(subject.device)
    before, what = _output(model, x), f"merge() of a layer with {case.how}"
    try:
        with quiet():
            layer.merge()
    except ERRORS:
        _require_close(_output(model, x), before, f"{what} was refused")
        return
    for call in ("the first call", "the second call"):
        _require_close(_output(model, x), before, f"{what} returned, {call}")
    with calling("unmerge()"):
        layer.unmerge()
    _require_close(_output(model, x), before, f"unmerge() after {what}")
