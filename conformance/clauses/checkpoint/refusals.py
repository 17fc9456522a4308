"""Files that load_adapter refuses, with the model unchanged: tensors that do not fit, and fields with a meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from conformance.clauses.checkpoint.peft_files import CONFIG, PREFIX, config_in, peft_config, put, tensors_in
from conformance.clauses.checkpoint.target_calls import (
    ONE,
    PLAIN,
    WIDTH,
    FileCase,
    expected_tensors,
    fails,
    folder,
    load,
    require_same,
    save,
    snapshot,
    trained,
)
from conformance.clauses.model.small_models import adapted
from conformance.judgement.outcomes import require
from conformance.specification.clause import SHOULD, clause
from conformance.target.subject import Subject

Tensors = dict[str, torch.Tensor]
BROAD = PLAIN.narrowed(chosen=("q_proj", "all", "wildcard"), r=(2, 6, 9))


def prepared(subject: Subject, case: FileCase) -> tuple[Any, dict[str, Any], Tensors]:
    """A model, and the fields and tensors of a file that fits it and has other values."""
    source, config = trained(subject, case)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if "lora_" in name:
                parameter.add_(1)
    with folder() as path:
        save(subject, source, config, path)
        tensors = tensors_in(Path(path))
    model, _ = trained(subject, case)
    return model, peft_config(case.r, case.alpha, adapted(model)), tensors


def _refused(subject: Subject, case: FileCase, what: str, change: Callable[[dict[str, Any], Tensors], str]) -> None:
    """Require that a changed file is refused; the message must contain the text that `change` returns."""
    model, values, tensors = prepared(subject, case)
    named = change(values, tensors)
    with folder() as path:
        put(Path(path), values, tensors)
        fails(subject, model, Path(path), what, *([named] if named else []))


def _last(tensors: Tensors) -> str:
    """The name that sorts last: a target that copies tensors one by one has by then copied the others."""
    return max(tensors)


@clause(
    "CKP-MISSING",
    sentence="""A file that lacks a tensor of the model's adapters, DoRA's magnitude included, is refused by an error
    that names the layer.""",
    cases=BROAD.narrowed(how=("lora_A", "lora_B", "a layer", "the magnitude")),
    dtypes=ONE,
)
def test_missing(subject: Subject, case: FileCase) -> None:
    dora = case.how == "the magnitude"

    def change(values: dict[str, Any], tensors: Tensors) -> str:
        layer = _last(tensors).removeprefix(PREFIX).partition(".lora_")[0]
        if dora:
            values["use_dora"] = True
            del tensors[next(name for name in tensors if name.startswith(f"{PREFIX}{layer}.lora_magnitude"))]
            return layer
        letters = "AB" if case.how == "a layer" else case.how[-1]
        for letter in letters:
            del tensors[f"{PREFIX}{layer}.lora_{letter}.weight"]
        if case.how == "a layer":
            values["target_modules"] = [name for name in values["target_modules"] if name != layer]
        return layer

    _refused(subject, dataclasses.replace(case, dora=dora), f"a file without {case.how}", change)


UNEXPECTED = {
    "a layer that is not there": "blocks.7.q_proj.lora_A.weight",
    "a layer without an adapter": "norm.lora_A.weight",
    "a bias": "blocks.0.q_proj.lora_B.bias",
    "a saved module": "head.weight",
    "a magnitude": "blocks.0.q_proj.lora_magnitude_vector",
    "an embedding": "embed.lora_embedding_A",
    "the name of an adapter": "blocks.0.q_proj.lora_A.default.weight",
    "a copy of the embeddings": "embed.weight",
    "a copy of the head": "head.base_layer.weight",
}


@clause(
    "CKP-UNEXPECTED",
    sentence="""A file with a tensor that fits no parameter of the model, or is a copy of the base model's embeddings or
    head with other values, is refused by an error that names the tensor; the tensor is never ignored.""",
    why="An ignored tensor is a part of the trained model that is lost silently.",
    cases=BROAD.narrowed(how=tuple(UNEXPECTED), chosen=("q_proj",)),
    dtypes=ONE,
)
def test_unexpected(subject: Subject, case: FileCase) -> None:
    def change(_: dict[str, Any], tensors: Tensors) -> str:
        name = UNEXPECTED[case.how]
        shape = {"a copy of the embeddings": (11, WIDTH), "a copy of the head": (5, WIDTH)}.get(case.how, (2, 6))
        tensors[PREFIX + name] = torch.ones(shape)
        return name.partition(".lora_")[0].removesuffix(".weight").removesuffix(".base_layer")

    _refused(subject, case, f"a file with {case.how}", change)


@clause(
    "CKP-PREFIX",
    sentence="""A file is refused if tensor names lack PEFT's prefix base_model.model., or if some or all modules have a
    prefix that those of the model lack, or lack one that those have.""",
    why="Loading the tensors whose names happen to fit loses the others silently.",
    cases=BROAD.narrowed(how=("", "model.", "base_model.", "base_model.model.model.", "some", "shorter names")),
    dtypes=ONE,
    level=SHOULD,
    weight=0.5,
)
def test_prefix(subject: Subject, case: FileCase) -> None:
    def change(_: dict[str, Any], tensors: Tensors) -> str:
        last = _last(tensors).removeprefix(PREFIX).partition(".lora_")[0]

        def rename(name: str) -> str:
            inner = name.removeprefix(PREFIX)
            if case.how == "some":
                return PREFIX + ("model." if inner.startswith(f"{last}.") else "") + inner
            if case.how == "shorter names":
                return PREFIX + inner.removeprefix("blocks.").replace("head.", "lm_head.")
            return case.how + inner

        renamed = {rename(name): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(renamed)
        return ""

    _refused(subject, case, "a file with other prefixes", change)


@clause(
    "CKP-SHAPE",
    sentence="A tensor of the wrong shape is refused by an error that names its layer, and no other tensor is loaded.",
    cases=BROAD.narrowed(how=("transposed", "one row more", "one column", "flat", "empty", "broadcast")),
    dtypes=ONE,
)
def test_shape(subject: Subject, case: FileCase) -> None:
    def change(_: dict[str, Any], tensors: Tensors) -> str:
        name = _last(tensors)
        t = tensors[name]
        tensors[name] = {
            "transposed": t.T.contiguous() if t.shape[0] != t.shape[1] else t[:-1],
            "one row more": torch.cat([t, t[:1]]),
            "one column": t[:, :1] if t.shape[1] > 1 else t[:, :0],
            "flat": t.flatten(),
            "empty": t[:0],
            "broadcast": t[:1],
        }[case.how]
        return name.removeprefix(PREFIX).partition(".lora_")[0]

    _refused(subject, case, f"a tensor that is {case.how}", change)


@clause(
    "CKP-INTEGERS",
    sentence="A tensor whose dtype is not floating point is refused by an error that names its layer.",
    cases=BROAD.narrowed(how=("int64", "uint8", "bool")),
    dtypes=ONE,
    weight=0.5,
)
def test_integers(subject: Subject, case: FileCase) -> None:
    def change(_: dict[str, Any], tensors: Tensors) -> str:
        name = _last(tensors)
        tensors[name] = (tensors[name].abs() * 9).to(getattr(torch, case.how))
        return name.removeprefix(PREFIX).partition(".lora_")[0]

    _refused(subject, case, f"a tensor of {case.how}", change)


FIELDS: dict[str, Any] = {
    "modules_to_save": ["head"],
    "peft_type": "IA3",
    "a_field_of_tomorrow": True,
    "r": 5,
    "lora_alpha": None,
    "lora_dropout": 2.0,
    "use_dora": "yes",
    "bias": "everything",
    "lora_bias": True,
    "layer_replication": [[0, 2], [1, 2]],
    "trainable_token_indices": [0, 1],
    "init_lora_weights": "pissa_niter_4",
    "rank_pattern": {"q_proj": 0},
    "alora_invocation_tokens": [3],
}
# For these fields the error may speak of the tensors instead.
UNNAMED = ("r", "lora_bias", "layer_replication", "trainable_token_indices")


@clause(
    "CKP-FIELDS",
    sentence="""load_adapter refuses a file, and never ignores the field, if a field of adapter_config.json is
    unknown, has a wrong type or is out of range, if peft_type is not LORA, if r is not the tensors' rank, if
    init_lora_weights says that the base weights were changed, if alora_invocation_tokens change the computation, or if
    modules_to_save, lora_bias, layer_replication or trainable_token_indices ask for parts that the file or the model
    lacks. The error names the field in the file's words; for r, lora_bias, layer_replication and
    trainable_token_indices it may speak of the tensors instead.""",
    cases=BROAD.narrowed(chosen=("q_proj",), place=tuple(range(len(FIELDS)))),
    dtypes=ONE,
)
def test_fields(subject: Subject, case: FileCase) -> None:
    def change(values: dict[str, Any], _: Tensors) -> str:
        values[key] = FIELDS[key]
        return "" if key in UNNAMED else key

    for offset in range(5):
        key = list(FIELDS)[(case.place + 3 * offset) % len(FIELDS)]
        _refused(subject, case, f"a file with {key} = {FIELDS[key]!r}", change)


# Fields that are empty, or have no effect on linear layers that are loaded.
HARMLESS: dict[str, dict[str, Any]] = {
    "null": {"a_field_of_tomorrow": None},
    "false": {"a_field_of_tomorrow": False},
    "an empty list": {"a_field_of_tomorrow": [], "modules_to_save": []},
    "an empty object": {"a_field_of_tomorrow": {}, "alpha_pattern": None},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}},
    "Megatron's": {"megatron_config": {"hidden_size": 6}, "megatron_core": "megatron.core"},
    "LoftQ's": {"init_lora_weights": False, "loftq_config": {"loftq_bits": 4}},
}


@clause(
    "CKP-FIELDS-EMPTY",
    sentence="""A field is no reason to refuse a file if its value is null, false or empty, nor if it has no effect on a
    loaded adapter: an init_lora_weights that only says how A and B began (gaussian, orthogonal, eva), megatron_config,
    or loftq_config without the initialisation loftq.""",
    cases=BROAD.narrowed(how=tuple(HARMLESS)),
    dtypes=ONE,
    weight=0.5,
)
def test_empty_fields(subject: Subject, case: FileCase) -> None:
    first = list(HARMLESS).index(case.how)
    for offset in range(3):
        fields = list(HARMLESS.values())[(first + 3 * offset) % len(HARMLESS)]
        model, values, tensors = prepared(subject, case)
        values |= {"modules_to_save": None, "rank_pattern": {}, "lora_bias": False} | fields
        with folder() as path:
            load(subject, model, put(Path(path), values, tensors))
        found = expected_tensors(model)
        for name, tensor in tensors.items():
            require(torch.equal(found[name].cpu(), tensor), f"load_adapter: {name} was not loaded beside {fields}")


@clause(
    "CKP-AGAIN",
    sentence="""After a refused file the right file loads and gives the saved values; nothing of the refused file
    remains.""",
    cases=BROAD,
    dtypes=ONE,
    weight=0.34,
)
def test_load_after_a_refusal(subject: Subject, case: FileCase) -> None:
    model, values, tensors = prepared(subject, case)
    with folder() as path:
        put(Path(path), values, {name: t[:0] if name == _last(tensors) else t for name, t in tensors.items()})
        fails(subject, model, Path(path), "an empty tensor")
        put(Path(path), values, tensors)
        before = snapshot(model)
        load(subject, model, path)
        require_same(before, model, "load_adapter", lambda name: name.startswith("the value of ") and "lora_" in name)
        require(config_in(Path(path)) == values, f"load_adapter changed {CONFIG}")
    for name, tensor in tensors.items():
        own = model.get_parameter(name.removeprefix(PREFIX)).detach().cpu()
        require(torch.equal(own, tensor), f"load_adapter: {name} was not loaded after a refusal")
