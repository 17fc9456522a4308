"""`get_remote_names` and `LINEAR_LAYERS`: the modules that run remotely, and their names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from conformance.clauses.hybrid.leaf_models import NAMES, NamesCase, drawn_leaves
from conformance.clauses.hybrid.module_tree import Doubling, conv1d, linear, tree
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

NEEDED = ("get_remote_names",)


def _names(subject: Subject, model: nn.Module, **options: bool) -> list[str]:
    shown = ", ".join(["model", *(f"{k}={v}" for k, v in options.items())])
    with calling_quietly(f"get_remote_names({shown})"):
        names = subject.target.get_remote_names(model, **options)
    require(isinstance(names, list), f"get_remote_names({shown}) is a {type(names).__name__}: expected a list")
    assert isinstance(names, list)
    return names


def _require_names(got: list[str], expected: list[str], model: nn.Module) -> None:
    missing = [name for name in expected if name not in got]
    surplus = [name for name in got if name not in expected]
    repeated = sorted({name for name in got if got.count(name) > 1})
    held = ", ".join(name for name, m in model.named_modules() if next(m.children(), None) is None)
    problems = [
        f"{what} {', '.join(names)}"
        for what, names in (("leaves out", missing), ("wrongly has", surplus), ("repeats", repeated))
        if names
    ]
    require(not problems, f"get_remote_names {'; '.join(problems)}. The model's leaves are {held}")


@clause(
    "HYB-NAMES",
    sentence="""get_remote_names returns the name of every linear layer except adapters. A layer is an adapter if a
    component of its name is lora_A, lora_B, lora_embedding_A, lora_embedding_B, lora_dropout, lora_magnitude or
    lora_magnitude_vector, or if it is a leaf whose own name starts with lora_.""",
    why="Adapters stay with the client: a server that holds them learns what was trained.",
    cases=NAMES,
    dtypes=("float32",),
    needs=NEEDED,
)
def test_names(subject: Subject, case: NamesCase) -> float | None:
    leaves, remote = drawn_leaves(case)
    model = tree(leaves)
    _require_names(_names(subject, model), remote, model)
    return None


@clause(
    "HYB-NAMES-WHOLE",
    sentence="""Names are matched by whole components: explorator, film_head, old_lm_head and all linear layers under
    a parent called lora_model run remotely.""",
    why="A substring search for `lora` or `lm_head` misroutes these layers.",
    cases=NAMES.narrowed(names=("alike",), remote=(4, 1, 11)),
    dtypes=("float32",),
    needs=NEEDED,
)
def test_whole_components(subject: Subject, case: NamesCase) -> float | None:
    leaves, remote = drawn_leaves(case)
    model = tree(leaves)
    _require_names(_names(subject, model), remote, model)
    return None


@clause(
    "HYB-NAMES-KINDS",
    sentence="""Only linear layers run remotely. Norms, activations, convolutions, embeddings, containers, nn.Bilinear
    and nn.Linear subclasses with their own forward do not.""",
    cases=NAMES.narrowed(remote=(1, 2)),
    dtypes=("float32",),
    needs=NEEDED,
    weight=0.3,
)
def test_kinds(subject: Subject, case: NamesCase) -> float | None:
    leaves, remote = drawn_leaves(case)
    others: dict[str, nn.Module] = {
        "norm": nn.LayerNorm(2),
        "act": nn.GELU(),
        "block.conv": nn.Conv1d(2, 2, 1),
        "embed": nn.Embedding(3, 2),
        "drop": nn.Dropout(0.0),
        "bilinear": nn.Bilinear(2, 2, 2),
        "block.doubled": Doubling(2, 2),
    }
    model = tree({**others, **leaves})
    _require_names(_names(subject, model), remote, model)
    return None


@clause(
    "HYB-NAMES-CUSTOM",
    sentence="A CustomLinear is listed as its two products, <path>.forward_module and <path>.backward_module.",
    cases=NAMES,
    dtypes=("float32",),
    needs=NEEDED,
)
def test_names_of_custom_layers(subject: Subject, case: NamesCase) -> float | None:
    leaves, remote = drawn_leaves(case)
    for name in remote[1:] or remote:
        with calling("CustomLinear(weight, bias)"):
            leaves[name] = subject.thing(nn.Parameter(linear().weight), None)
    model = tree(leaves)
    kept = [] if len(remote) == 1 else remote[:1]
    products = [f"{n}.{own}" for n in remote if n not in kept for own in ("forward_module", "backward_module")]
    _require_names(_names(subject, model), kept + products, model)
    return None


@clause(
    "HYB-NAMES-HEAD",
    sentence="A linear layer whose name has the component lm_head runs remotely only with include_embedding_layers.",
    cases=NAMES.narrowed(
        embeddings=(False, True), remote=(1, 2), adapters=(0, 2), how=("lm_head", "lm_head.dense", "decoder.lm_head")
    ),
    dtypes=("float32",),
    needs=NEEDED,
)
def test_head(subject: Subject, case: NamesCase) -> float | None:
    leaves, remote = drawn_leaves(case)
    head = ("model." if case.deep else "") + case.how
    model = tree({**leaves, head: linear()})
    expected = remote + ([head] if case.embeddings else [])
    _require_names(_names(subject, model, include_embedding_layers=case.embeddings), expected, model)
    return None


@clause(
    "HYB-NAMES-EMBEDDING",
    sentence="Embeddings run remotely only with include_embedding_layers; an adapter's embeddings never do.",
    cases=NAMES.narrowed(embeddings=(True, False), remote=(1, 2), adapters=(0, 2)),
    dtypes=("float32",),
    needs=NEEDED,
    weight=0.5,
)
def test_embeddings(subject: Subject, case: NamesCase) -> float | None:
    leaves, remote = drawn_leaves(case)
    embeddings = ["embed_tokens", "decoder.wte"]
    leaves |= {name: nn.Embedding(3, 2) for name in embeddings}
    model = tree({**leaves, "embed.lora_embedding_A.default": nn.Embedding(3, 2)})
    expected = remote + (embeddings if case.embeddings else [])
    _require_names(_names(subject, model, include_embedding_layers=case.embeddings), expected, model)
    return None


@clause(
    "HYB-NAMES-CONV1D",
    sentence="Conv1D of transformers counts as a linear layer.",
    library="transformers",
    cases=NAMES.narrowed(remote=(1, 2)),
    dtypes=("float32",),
    needs=NEEDED,
    weight=0.3,
)
def test_conv1d(subject: Subject, case: NamesCase) -> float | None:
    leaves, remote = drawn_leaves(case)
    leaves["block.c_attn"] = conv1d(4, 2)
    leaves["block.c_attn2.lora_A"] = conv1d(4, 2)
    model = tree(leaves)
    _require_names(_names(subject, model), [*remote, "block.c_attn"], model)
    return None


@clause(
    "HYB-NAMES-PEFT",
    sentence="""In a layer wrapped as by PEFT the base_layer runs remotely, as an nn.Linear or as the two products of
    a CustomLinear, and lora_A.default, lora_B.default and lora_dropout.default do not.""",
    cases=NAMES.narrowed(remote=(1,), adapters=(0,), how=("plain", "converted")),
    dtypes=("float32",),
    needs=NEEDED,
    weight=0.5,
)
def test_peft_wrapper(subject: Subject, case: NamesCase) -> float | None:
    path = ("base_model.model." if case.deep else "") + "layers.0.q_proj"
    base: nn.Module = linear()
    expected = [f"{path}.base_layer"]
    if case.how == "converted":
        with calling("CustomLinear(weight, bias)"):
            base = subject.thing(nn.Parameter(linear().weight), None)
        expected = [f"{path}.base_layer.forward_module", f"{path}.base_layer.backward_module"]
    adapter = {f"{path}.lora_dropout.default": nn.Identity(), f"{path}.lora_A.default": linear()}
    model = tree({f"{path}.base_layer": base, **adapter, f"{path}.lora_B.default": linear()})
    _require_names(_names(subject, model), expected, model)
    return None


@clause(
    "HYB-NAMES-LAYER",
    sentence="""A LinearLoRA does not run remotely as a whole. After replace_layers_with_custom the two products of
    its base_layer run remotely, and its adapter does not.""",
    cases=NAMES.narrowed(remote=(1, 2), adapters=(0,)),
    dtypes=("float32",),
    needs=("get_remote_names", "LinearLoRA", "LoraTraining"),
    weight=0.5,
)
def test_lora_layer(subject: Subject, case: NamesCase) -> float | None:
    leaves, remote = drawn_leaves(case)
    path = ("model." if case.deep else "") + "adapted.q_proj"
    with calling_quietly("LinearLoRA(nn.Linear(2, 2), dim=1)"):
        layer: Any = subject.target.LinearLoRA(linear(), dim=1)
    model = tree({**leaves, path: layer})
    _require_names(_names(subject, model), remote, model)
    with calling_quietly("LoraTraining.replace_layers_with_custom(model, skip_first=False)"):
        subject.target.LoraTraining.replace_layers_with_custom(model, skip_first=False)
    paths = [*remote, f"{path}.base_layer"]
    expected = [f"{p}.{own}" for p in paths for own in ("forward_module", "backward_module")]
    _require_names(_names(subject, model), expected, model)
    return None


@clause(
    "HYB-NAMES-NONE",
    sentence="""For a model in which no module runs remotely, get_remote_names returns an empty list and warns; for
    other models it does not warn.""",
    cases=NAMES.narrowed(adapters=(0, 2), how=("none", "some")),
    dtypes=("float32",),
    needs=NEEDED,
    weight=0.5,
)
def test_nothing_remote(subject: Subject, case: NamesCase) -> float | None:
    leaves, remote = drawn_leaves(case)
    if case.how == "none":
        leaves = {"norm": nn.LayerNorm(2), "lm_head": linear(), **{n: m for n, m in leaves.items() if n not in remote}}
        remote = []
    model = tree(leaves)
    with warnings.catch_warnings(record=True) as caught, calling("get_remote_names(model)"):
        warnings.simplefilter("always")
        names = subject.target.get_remote_names(model)
    _require_names(names, remote, model)
    said = [str(w.message) for w in caught]
    if case.how == "none":
        require(bool(said), "get_remote_names of a model without remote modules gave no warning")
    else:
        require(not said, f"get_remote_names warned {'; '.join(said)!r} although it found {', '.join(remote)}")
    return None


@clause(
    "HYB-LINEAR-LAYERS",
    sentence="""isinstance(module, LINEAR_LAYERS) is True for nn.Linear and transformers' Conv1D, and False for other
    layers.""",
    cases=NAMES.narrowed(remote=(1,), adapters=(0,), deep=(False,), how=("nn.Linear", "Conv1D", "nn.Embedding")),
    dtypes=("float32",),
    needs=("LINEAR_LAYERS",),
    library="transformers",
    weight=0.5,
)
def test_linear_layers(subject: Subject, case: NamesCase) -> float | None:
    kinds: dict[str, Callable[[int, int], nn.Module]]
    kinds = {"nn.Linear": nn.Linear, "Conv1D": conv1d, "nn.Embedding": nn.Embedding}
    module = kinds[case.how](2, 2)
    expected = case.how != "nn.Embedding"
    with calling(f"isinstance(a {case.how}, LINEAR_LAYERS)"):
        found = isinstance(module, subject.target.LINEAR_LAYERS)
    require(found == expected, f"isinstance(a {case.how}, LINEAR_LAYERS) is {found}: expected {expected}")
    return None
