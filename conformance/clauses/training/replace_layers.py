"""`replace_layers_with_custom`: the layers it replaces, and those it leaves alone."""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from conformance.clauses.hybrid.leaf_models import NAMES, NamesCase, remote_pool
from conformance.clauses.hybrid.module_tree import ADAPTERS, Branch, Doubling, conv1d, converted, linear, tree
from conformance.clauses.training.closed_form_network import ONE
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly, refuses
from conformance.target.subject import Subject


def replace(subject: Subject, model: nn.Module, *skip_first: bool) -> list[str]:
    """Run the target's `replace_layers_with_custom`; return the warnings it gave."""
    shown = ", ".join(["model", *map(str, skip_first)])
    with warnings.catch_warnings(record=True) as caught, calling(f"replace_layers_with_custom({shown})"):
        warnings.simplefilter("always")
        subject.thing.replace_layers_with_custom(model, *skip_first)
    return [str(w.message) for w in caught]


def require_replaced(model: nn.Module, expected: Iterable[str]) -> None:
    """Require that these layers have become `CustomLinear`s, and no others."""
    now, wanted = set(converted(model)), set(expected)
    missing, surplus = sorted(wanted - now), sorted(now - wanted)
    said = [f"did not replace {', '.join(missing)}"] if missing else []
    said += [f"replaced {', '.join(surplus)}"] if surplus else []
    require(
        not said, f"replace_layers_with_custom {' and '.join(said)}: expected {', '.join(sorted(wanted)) or 'none'}"
    )


def _names(case: NamesCase) -> tuple[list[str], list[str]]:
    """The names of all linear layers, drawn from the seed, in registration order; and the eligible ones of these."""
    draw, prefix = random.Random(case.seed), "model." if case.deep else ""
    eligible = [prefix + name for name in (*draw.sample(remote_pool(case), case.remote), "lm_head")]
    names = eligible + [prefix + name for name in draw.sample(ADAPTERS, case.adapters)]
    draw.shuffle(names)
    model = tree({name: linear() for name in names})
    # registration order is that of the tree, which groups the modules of one parent
    registered = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    return registered, [name for name in registered if name in eligible]


@clause(
    "TRN-REP-ALL",
    sentence="With skip_first=False, every nn.Linear outside adapters is replaced, including lm_head.",
    cases=NAMES,
    dtypes=ONE,
)
def test_replaces_all(subject: Subject, case: NamesCase) -> float | None:
    names, eligible = _names(case)
    model = tree({name: linear() for name in names})
    replace(subject, model, False)
    require_replaced(model, eligible)
    return None


@clause(
    "TRN-REP-WHOLE",
    sentence="""Adapter names are matched by whole dotted components: a layer named explorator, or a layer under
    lora_model, is replaced.""",
    why="A match of substrings keeps such layers from being replaced, without notice.",
    cases=NAMES.narrowed(names=("alike",), remote=(4, 1, 11)),
    dtypes=ONE,
)
def test_whole_components(subject: Subject, case: NamesCase) -> float | None:
    names, eligible = _names(case)
    model = tree({name: linear() for name in names})
    replace(subject, model, False)
    require_replaced(model, eligible)
    return None


@clause(
    "TRN-REP-FIRST",
    sentence="With skip_first=True, the default, exactly the first eligible layer in registration order is left out.",
    cases=NAMES.narrowed(how=("by default", "skip_first=True")),
    dtypes=ONE,
)
def test_skips_the_first(subject: Subject, case: NamesCase) -> float | None:
    names, eligible = _names(case)
    model = tree({"embed": nn.Embedding(3, 2), "norm": nn.LayerNorm(2), **{name: linear() for name in names}})
    replace(subject, model, *(() if case.how == "by default" else (True,)))
    require_replaced(model, eligible[1:])
    return None


SKIPPED = "n_layers_to_skip_for_backprop"


@clause(
    "TRN-REP-SKIPPED",
    sentence="""LoraTraining(model, n_layers_to_skip_for_backprop=n) leaves out the first n eligible layers in
    registration order. A negative n, or one that is no int, is refused, and the model stays as it is.""",
    why="q, k and v of a first attention block all take the embeddings, which need no gradient.",
    cases=NAMES.narrowed(remote=(4, 1), how=("0", "3", "2", "1", "99", "-1", "1.5", "True")),
    dtypes=ONE,
    needs=(f"LoraTraining({SKIPPED})",),
)
def test_skips_the_first_layers(subject: Subject, case: NamesCase) -> float | None:
    names, eligible = _names(case)
    model, skipped = tree({name: linear() for name in names}), ast.literal_eval(case.how)
    training: Any = subject.thing
    call = lambda: training(model, **{SKIPPED: skipped})  # noqa: E731
    if type(skipped) is not int or skipped < 0:
        refuses(f"LoraTraining(model, {SKIPPED}={skipped})", call, SKIPPED, types=(ValueError, TypeError))
        require_replaced(model, [])
        return None
    with calling_quietly(f"LoraTraining(model, {SKIPPED}={skipped})"):
        training(model, **{SKIPPED: skipped})
    require_replaced(model, eligible[skipped:])
    return None


@clause(
    "TRN-REP-FIRST-LAYER",
    sentence="""A LinearLoRA counts as an eligible layer for skip_first: if it comes first, its base product is left
    out.""",
    cases=NAMES.narrowed(remote=(1, 2), adapters=(0,), how=("first", "second")),
    dtypes=ONE,
    needs=("LinearLoRA",),
    weight=0.3,
)
def test_skips_a_lora_layer(subject: Subject, case: NamesCase) -> float | None:
    _, eligible = _names(case)
    with calling_quietly("LinearLoRA(nn.Linear(2, 2), dim=1)"):
        layer = subject.target.LinearLoRA(linear(), dim=1)
    plain: dict[str, nn.Module] = {name: linear() for name in eligible}
    model = tree({"wrapped": layer, **plain} if case.how == "first" else {"lead": linear(), "wrapped": layer, **plain})
    replace(subject, model, True)
    require_replaced(model, eligible if case.how == "first" else [*eligible, "wrapped.base_layer"])
    return None


@clause(
    "TRN-REP-ADAPTERS",
    sentence="Adapters are never replaced: they stay the same modules with the same Parameters.",
    cases=NAMES.narrowed(adapters=(2, 5, len(ADAPTERS)), remote=(1, 2)),
    dtypes=ONE,
    weight=0.5,
)
def test_adapters_stay(subject: Subject, case: NamesCase) -> float | None:
    names, eligible = _names(case)
    leaves = {name: linear() for name in names}
    model = tree(leaves)
    replace(subject, model, False)
    for name in sorted(set(names) - set(eligible)):
        require(model.get_submodule(name) is leaves[name], f"{name} is part of an adapter and was replaced")
    return None


@clause(
    "TRN-REP-CONV1D",
    sentence="transformers' Conv1D, whose weight is [in, out], is replaced too and still maps in to out features.",
    library="transformers",
    cases=NAMES.narrowed(remote=(1,), adapters=(0, 2)),
    dtypes=ONE,
    weight=0.3,
)
def test_conv1d(subject: Subject, case: NamesCase) -> float | None:
    names, eligible = _names(case)
    model = tree({**{name: linear() for name in names}, "block.c_attn": conv1d(4, 2)})
    replace(subject, model, False)
    require_replaced(model, [*eligible, "block.c_attn"])
    with calling("the forward pass of a replaced Conv1D(4, 2) on x [3, 2]"):
        y = model.get_submodule("block.c_attn")(torch.ones(3, 2))
    require(y.shape == (3, 4), f"a replaced Conv1D(4, 2) maps x [3, 2] to {list(y.shape)}: expected [3, 4]")
    return None


@clause(
    "TRN-REP-SUBCLASS",
    sentence="A subclass of nn.Linear with its own forward is left alone, with a warning that names it or its class.",
    cases=NAMES.narrowed(remote=(1, 2), adapters=(0, 2)),
    dtypes=ONE,
    weight=0.5,
)
def test_subclass_left_alone(subject: Subject, case: NamesCase) -> float | None:
    names, eligible = _names(case)
    path = "block.doubled.fc"
    subclass = Doubling(2, 2).requires_grad_(False)
    model = tree({**{name: linear() for name in names}, path: subclass})
    said = replace(subject, model, False)
    require_replaced(model, eligible)
    require(model.get_submodule(path) is subclass, f"{path}, a Doubling(nn.Linear) with its own forward, was exchanged")
    named = [message for message in said if path in message or "Doubling" in message]
    require(bool(named), f"leaving {path}, a subclass of nn.Linear, gave no warning that names it, but {said}")
    return None


@clause(
    "TRN-REP-SHARED",
    sentence="A module reachable under two names is replaced once, by one module under both names.",
    cases=NAMES.narrowed(remote=(1, 2), adapters=(0, 2), how=("beside", "below", "container")),
    dtypes=ONE,
    weight=0.5,
)
def test_shared_module(subject: Subject, case: NamesCase) -> float | None:
    names, eligible = _names(case)
    shared, second = linear(), {"beside": "tied", "below": "block.tied.fc", "container": ""}[case.how]
    leaves: dict[str, nn.Module] = {**{name: linear() for name in names}, "shared.fc": shared}
    model: Any = tree(leaves)
    if case.how == "container":
        model.again = model.shared
        second = "again.fc"
    else:
        model = tree({**leaves, second: shared})
    replace(subject, model, False)
    require_replaced(model, [*eligible, "shared.fc", second])
    one, other = model.get_submodule("shared.fc"), model.get_submodule(second)
    require(one is other, f"shared.fc and {second} were one module and are two")
    return None


@clause(
    "TRN-REP-SHARED-FIRST",
    sentence="A module reachable under two names counts as one layer for skip_first.",
    cases=NAMES.narrowed(remote=(1, 2), adapters=(0,)),
    dtypes=ONE,
    weight=0.3,
)
def test_shared_module_skipped(subject: Subject, case: NamesCase) -> float | None:
    _, eligible = _names(case)
    shared = linear()
    model = tree({"shared.fc": shared, "tied": shared, **{name: linear() for name in eligible}})
    replace(subject, model, True)
    require_replaced(model, eligible)
    return None


@clause(
    "TRN-REP-BIAS",
    sentence="""Replacing a layer whose bias is trainable while its weight is frozen gives one warning, which names
    the layer; replacing frozen layers gives no warning.""",
    why="A replaced layer gives its bias no gradient, so that the bias stops training.",
    cases=NAMES.narrowed(adapters=(0, 2), how=("bias trainable", "both frozen", "both trainable")),
    dtypes=ONE,
)
def test_trainable_bias(subject: Subject, case: NamesCase) -> float | None:
    names, eligible = _names(case)
    model = tree({name: linear() for name in names})
    layer: Any = model.get_submodule(eligible[-1])
    layer.weight.requires_grad_(case.how == "both trainable")
    layer.bias.requires_grad_(case.how != "both frozen")
    said = replace(subject, model, False)
    named = [message for message in said if eligible[-1] in message and "bias" in message]
    if case.how == "bias trainable":
        require(
            len(named) == 1,
            f"replacing {eligible[-1]}, whose bias alone is trainable, gave no warning naming it, but {said}",
        )
    elif case.how == "both frozen":
        require(not said, f"replacing a model of frozen layers warned {said}")
    return None


@clause(
    "TRN-REP-NOTHING",
    sentence="A model with nothing to replace stays as it is.",
    cases=NAMES.narrowed(adapters=(0, 2, 5), remote=(1,)),
    dtypes=ONE,
    weight=0.3,
)
def test_nothing_to_replace(subject: Subject, case: NamesCase) -> float | None:
    draw = random.Random(case.seed)
    leaves: dict[str, nn.Module] = {name: linear() for name in draw.sample(ADAPTERS, case.adapters)}
    model = tree({"norm": nn.LayerNorm(2), "embed": nn.Embedding(3, 2), **leaves})
    before = dict(model.named_modules())
    replace(subject, model)
    now = dict(model.named_modules())
    require(isinstance(model, Branch), "the model was exchanged")
    changed = [name for name in {**before, **now} if before.get(name) is not now.get(name)]
    require(not changed, f"replace_layers_with_custom exchanged {', '.join(changed)} of a model without linear layers")
    return None
