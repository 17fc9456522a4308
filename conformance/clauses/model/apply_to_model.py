"""`apply_lora_to_linear_modules`: its count, frozen parameters, shared modules, options and repeated calls."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.config.field_values import DEFAULTS
from conformance.clauses.model.small_models import TOY_LINEARS, Toy, Twice, adapted, adapters, is_adapter, model_named
from conformance.clauses.model.target_calls import (
    PatchCase,
    apply,
    apply_config,
    in_its_rule,
    linear,
    make_config,
    refuses_all,
    require_adapter,
    warned,
)
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject


@dataclass(frozen=True)
class ModelCase(Case):
    """A toy model and the layers that the config chooses.

    Fields:
        targets: a pattern, or several separated by commas; empty for match_all_linear.
        frozen: the parameters are frozen beforehand, as after an earlier stage of training.
        training: the model's training flag when it is patched.
    """

    targets: str = ""
    frozen: bool = False
    training: bool = True
    dim: int = 2
    triton: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The case as options of a PeftConfig."""
        chosen = {"target_modules": self.targets.split(",")} if self.targets else {"match_all_linear": True}
        return {**chosen, "dim": self.dim, "use_triton": self.triton}

    def toy(self, subject: Subject) -> Toy:
        """The model, drawn by the seed."""
        torch.manual_seed(self.seed)
        return Toy().to(subject.device).requires_grad_(not self.frozen).train(self.training)


CHOSEN = {
    "": TOY_LINEARS,
    "*_proj": ("blocks.0.q_proj", "blocks.1.q_proj"),
    "fc1": ("blocks.0.fc1", "blocks.1.fc1"),
    "blocks.1.*": ("blocks.1.fc1", "blocks.1.fc2", "blocks.1.q_proj"),
    "head,blocks.0.fc2": ("blocks.0.fc2", "head"),
    "*": TOY_LINEARS,
}
MODELS = Space(
    ModelCase,
    targets=tuple(CHOSEN),
    frozen=(False, True),
    training=(True, False),
    dim=(2, 1, 5),
    triton=(False, True),
)


@clause(
    "MOD-COUNT",
    sentence="apply_lora_to_linear_modules patches exactly the chosen linear modules and returns their number.",
    cases=MODELS,
    dtypes=("float32",),
)
def test_count(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    count = apply(subject, model, **case.options)
    expected = sorted(CHOSEN[case.targets])
    require(adapted(model) == expected, f"{named(case)}: patched {adapted(model)}, expected {expected}")
    require(
        count == len(expected) and not isinstance(count, bool),
        f"{named(case)}: returned {count!r}, expected {len(expected)}",
    )


def named(case: ModelCase) -> str:
    """The case's choice of layers, as messages show it."""
    return f"target_modules={case.targets.split(',')}" if case.targets else "match_all_linear=True"


@clause(
    "MOD-FREEZE",
    sentence="""After apply_lora_to_linear_modules exactly the adapters are trainable: norms, embeddings, biases,
    other parameters and linear layers that are not chosen are frozen.""",
    cases=MODELS,
    dtypes=("float32",),
)
def test_freeze(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    apply(subject, model, **case.options)
    require_only_adapters_train(model, f"after {named(case)}")


@clause(
    "MOD-FREEZE-EMPTY",
    sentence="""A config that chooses no layer still freezes every parameter. By the convention `no_match: error` it is
    refused.""",
    cases=MODELS.narrowed(targets=("nothing_like_it",)),
    dtypes=("float32",),
    weight=0.25,
)
def test_freeze_where_nothing_matches(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    if subject.follows("no_match", "error"):
        refuses_all(subject, model, named(case), **case.options)
        return
    apply(subject, model, **case.options)
    require_only_adapters_train(model, f"after {named(case)}, which chooses nothing")


@clause(
    "MOD-FREEZE-KEPT",
    sentence="""Frozen parameters stay frozen, and adapters trainable, after train(), eval(), deepcopy and
    load_state_dict.""",
    cases=MODELS,
    dtypes=("float32",),
    weight=0.5,
)
def test_freeze_kept(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    apply(subject, model, **case.options)
    model.eval()
    require_only_adapters_train(model, "after eval()")
    model.train()
    require_only_adapters_train(model, "after train()")
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    require_only_adapters_train(model, "after load_state_dict")
    require_only_adapters_train(copy.deepcopy(model), "of a deepcopy")


def require_only_adapters_train(model: nn.Module, when: str) -> None:
    """Require that exactly the adapters of a model are trainable."""
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            require(parameter.requires_grad, f"{name} is frozen {when}: expected trainable")
        else:
            require(not parameter.requires_grad, f"{name} is trainable {when}: expected frozen")


@clause(
    "MOD-SHARED",
    sentence="A module reachable under several names is patched once, counted once, and remains one module.",
    cases=MODELS.narrowed(targets=("first_proj", "*", "", "first_proj,second", "*ir*")),
    dtypes=("float32",),
)
def test_shared(subject: Subject, case: ModelCase) -> None:
    _apply_to_shared(subject, case, expected=2 if case.targets in ("*", "") else 1)


@clause(
    "MOD-SHARED-ALIAS",
    sentence="""A module reachable under several names is chosen if a pattern matches any of its names; or only by its
    first name, if the target declares `shared_names: first name`.""",
    why="named_modules lists only the first name of a shared module, so a pattern for another name would be lost.",
    cases=MODELS.narrowed(targets=("second", "inner.third", "inner.*")),
    level="SHOULD",
    dtypes=("float32",),
    weight=0.5,
)
def test_shared_alias(subject: Subject, case: ModelCase) -> None:
    first = subject.follows("shared_names", "first name")
    if first and subject.follows("no_match", "error"):
        refuses_all(subject, Twice().to(subject.device), named(case), **case.options)
        return
    _apply_to_shared(subject, case, expected=0 if first else 1)


def _apply_to_shared(subject: Subject, case: ModelCase, expected: int) -> None:
    model = Twice().to(subject.device)
    count = apply(subject, model, **case.options)
    names = f"a layer named first_proj, second and inner.third, and {named(case)}"
    patched = hasattr(model.first_proj, "lora_A")
    require(patched or not expected, f"{names}: the layer was not patched")
    require(bool(expected) or not patched, f"{names}: the layer was patched, although only its first name counts")
    require(count == expected, f"{names}: returned {count!r}, expected {expected}")
    require(model.second is model.first_proj, f"{names}: the two names are no longer one module")


@clause(
    "MOD-AGAIN",
    sentence="""A config that chooses layers which already have an adapter is an error, and the refused call replaces
    no parameter.""",
    why="A second adapter in place of the first would discard what was trained.",
    cases=MODELS.narrowed(targets=("", "*_proj", "fc1", "head,blocks.0.fc2")),
    dtypes=("float32",),
    weight=0.5,
)
def test_again(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    apply(subject, model, **case.options)
    config = make_config(subject, **in_its_rule(subject, model, case.options))
    parameters = dict(model.named_parameters())
    what = f"apply_lora_to_linear_modules with {named(case)} to a model it was applied to before"
    refuses(what, lambda: subject.thing(model, config), types=(ValueError, TypeError))
    kept = [parameter for name, parameter in model.named_parameters() if parameter is parameters.get(name)]
    require(len(kept) == len(parameters), f"{what} replaced parameters before it was refused")


@clause(
    "MOD-SECOND",
    sentence="A second config for other layers leaves the adapters of the first config trainable and unchanged.",
    cases=MODELS.narrowed(targets=("fc1", "*_proj", "blocks.1.*")),
    feature="second_config",
    dtypes=("float32",),
    weight=0.5,
)
def test_second(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    apply(subject, model, **case.options)
    before = adapters(model)
    with torch.no_grad():
        for parameter in before.values():
            parameter.fill_(0.5)
    count = apply(subject, model, target_modules=["head"], dim=3)
    require(count == 1, f"a second config for head returned {count!r}: expected 1")
    after = dict(model.named_parameters())
    for name, parameter in before.items():
        require(after.get(name) is parameter, f"{name} was replaced by a second config for head")
        require(bool((parameter == 0.5).all()), f"a second config for head changed the values of {name}")
    require_only_adapters_train(model, f"after {named(case)} and then head")


@clause(
    "MOD-CONFIG-UNTOUCHED",
    sentence="""apply_lora_to_linear_modules does not modify the config or the caller's lists, and the same config has
    the same effect on a second, equal model.""",
    cases=MODELS,
    dtypes=("float32",),
)
def test_config_untouched(subject: Subject, case: ModelCase) -> None:
    options = in_its_rule(subject, case.toy(subject), case.options)
    patterns = options.get("target_modules", [])
    given = list(patterns)
    config = make_config(subject, **{**options, "target_modules": patterns})
    before = {key: copy.deepcopy(getattr(config, key)) for key in DEFAULTS if hasattr(config, key)}
    results = []
    for model in (case.toy(subject), case.toy(subject)):
        count = apply_config(subject, model, config, named(case))
        results.append((count, adapted(model)))
        require(patterns == given, f"the caller's target_modules went from {given} to {patterns}")
        changed = [key for key, value in before.items() if getattr(config, key) != value]
        require(not changed, f"applying the config changed its {', '.join(changed)}")
    require(
        results[0] == results[1],
        f"the same config patched {results[0]} in one model and {results[1]} in the next",
    )


@clause(
    "MOD-REPRODUCIBLE",
    sentence="""Under one seed equal models get equal adapters, whatever the names of their modules and the hashes of
    these names. Under another seed they get other adapters. No two layers of a model get the same lora_A.""",
    cases=Space(ModelCase, dim=(2, 3), triton=(False, True)),
    level="SHOULD",
    dtypes=("float32",),
)
def test_reproducible(subject: Subject, case: ModelCase) -> None:
    words = random.Random(case.seed)
    drawn = []
    for seed in (case.seed, case.seed, case.seed + 1):
        # the names sort in registration order in both models, but not in hash order
        names = [f"{letter}{words.randrange(10**6)}_proj" for letter in "abcde"]
        model = model_named(names).to(subject.device)
        torch.manual_seed(seed)
        apply(subject, model, target_modules=["*_proj"], dim=case.dim, use_triton=case.triton)
        drawn.append([adapter_of(require_adapter(model.get_submodule(name), name), "lora_A") for name in names])
    same = all(torch.equal(a, b) for a, b in zip(*drawn[:2], strict=True))
    require(same, f"torch.manual_seed({case.seed}), then two equal models with other names: lora_A differs")
    again = any(torch.equal(a, b) for a, b in zip(*drawn[1:], strict=True))
    require(not again, f"lora_A is the same after torch.manual_seed({case.seed}) and ({case.seed + 1})")
    alike = any(torch.equal(a, b) for i, a in enumerate(drawn[0]) for b in drawn[0][:i])
    require(not alike, "two layers of one model got the same random lora_A")


@clause(
    "MOD-BARE-LINEAR",
    sentence="A model that is itself an nn.Linear is patched, and the returned count is 1.",
    cases=Space(PatchCase, k=(4, 1), n=(3, 1), r=(2, 1), triton=(False, True)),
    level="SHOULD",
    feature="in_place",
    dtypes=("float32",),
    weight=0.25,
)
def test_bare_linear(subject: Subject, case: PatchCase) -> None:
    model = linear(subject, case)
    count, _ = warned(subject, model, match_all_linear=True, dim=case.r, use_triton=case.triton)
    require(hasattr(model, "lora_A") and count == 1, f"match_all_linear on an nn.Linear itself returned {count!r}")
