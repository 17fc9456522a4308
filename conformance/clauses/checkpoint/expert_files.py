"""Files with adapters on experts, as PEFT of several versions and other libraries write them, loaded into a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from conformance.clauses.checkpoint.expert_model import (
    EXPERT_FILES,
    NEEDS,
    SIMPLE,
    ExpertFileCase,
    ExpertModel,
    Pair,
    adapt,
    drawn_pairs,
    expert_model,
    fields,
    modules,
    packed,
    require_output,
    scales_in,
    with_updates,
)
from conformance.clauses.checkpoint.peft_files import PREFIX, put
from conformance.clauses.checkpoint.target_calls import fails, folder, load, raised, require_same, snapshot
from conformance.judgement.outcomes import require
from conformance.specification.clause import SHOULD, clause
from conformance.target.calls import fault_of
from conformance.target.subject import Subject

OPTIONS: dict[str, Any] = {"dtypes": ("float64",), "needs": NEEDS, "weight": 0.5}
PATTERNS: tuple[dict[str, Any], ...] = (
    {},
    {"rank_pattern": {"down_proj": 4}},
    {"rank_pattern": {"layers.1.mlp.experts.down_proj": 1}, "alpha_pattern": {r"experts\..*up_proj": 5}},
    {"alpha_pattern": {"experts.down_proj": 3}},
)


@clause(
    "CKP-EXPERTS-PEFT",
    sentence="""After loading a file of PEFT with target_parameters, each expert computes with W_e + s·B_e A_e: lora_A
    [r·E, K] holds the experts one after the other, lora_B [N, r·E] has expert e in the columns e, e + E, …, and each
    projection but the one that the module registers last has one more `base_layer.` in its keys. s = lora_alpha/r, or
    lora_alpha/√r, with the rank_pattern and alpha_pattern of each parameter. A model without adapters, and patterns,
    may be refused with a ValueError.""",
    why="A B that is unpacked expert by expert has the right shape, and mixes the experts.",
    cases=EXPERT_FILES.narrowed(place=tuple(range(len(PATTERNS)))),
    **(OPTIONS | {"weight": 1.0}),
)
def test_experts_of_peft(subject: Subject, case: ExpertFileCase) -> None:
    patterns = PATTERNS[case.place if case.model == "plain" else 0]
    model, values = expert_model(subject, case), fields(case, **patterns)
    pairs = drawn_pairs(case, values["rank_pattern"])
    expected = with_updates(model, pairs, scales_in(values, pairs))
    if case.model == "adapted":
        adapt(subject, model, case)
    with folder() as path:
        put(Path(path), values, packed(model, pairs))
        if case.model == "adapted":
            load(subject, model, path)
        elif isinstance(raised(lambda: subject.target.load_adapter(model, path)), ValueError):
            return
        with fault_of("load_adapter"):
            require_output(model, expected, case, "the output")


def _right_or_refused(
    subject: Subject, case: ExpertFileCase, tensors: Mapping[str, Tensor], values: dict[str, Any], pairs: Any
) -> bool:
    """Whether a model loads a file, which must then be right; a ValueError leaves it as it was."""
    model = expert_model(subject, case)
    expected = with_updates(model, pairs, scales_in(values, pairs))
    if case.model == "adapted":
        adapt(subject, model, case)
    before = snapshot(model)
    with folder() as path, fault_of("load_adapter"):
        put(Path(path), values, tensors)
        error = raised(lambda: subject.target.load_adapter(model, path))
        if error is not None:
            require(isinstance(error, ValueError), f"load_adapter raised {error!r}: expected ValueError or the output")
            require_same(before, model, "load_adapter of a file that it refused")
            return False
        require_output(model, expected, case, "load_adapter refused nothing, and the output")
    return True


def turned(pairs: Mapping[str, Pair], *names: str) -> dict[str, Pair]:
    """The pairs as older files have them: A reads the outputs, and B the inputs; all, or the named modules'."""
    return {full: (B.mT, A.mT) if not names or full.startswith(names) else (A, B) for full, (A, B) in pairs.items()}


def _older(model: ExpertModel, case: ExpertFileCase, version: str | None) -> tuple[dict[str, Pair], dict[str, Tensor]]:
    """The pairs of an older file and its tensors; PEFT before 0.19.0 turned only weights that are not transposed."""
    pairs = drawn_pairs(case)
    as_now = case.kind == "interleaved" and version == "0.18.1"
    return pairs, packed(model, pairs if as_now else turned(pairs))


OLD = SIMPLE.narrowed(chosen=("both", "first", "down"), model=("adapted", "plain"), place=(0, 1, 2))
VERSIONS = ("0.18.1", "0.19.0", None)


@clause(
    "CKP-EXPERTS-OLD",
    sentence="""A file of PEFT before 0.19.1, in which A reads the outputs of a projection and B gives its inputs, is
    refused with a ValueError and changes nothing, or each expert computes with its update.""",
    why="Where a projection is square, the old order fits too, and gives another function.",
    cases=OLD,
    **OPTIONS,
)
def test_older_files(subject: Subject, case: ExpertFileCase) -> None:
    version = VERSIONS[case.place]
    pairs, tensors = _older(expert_model(subject, case), case, version)
    _right_or_refused(subject, case, tensors, fields(case, peft_version=version), pairs)


@clause(
    "CKP-EXPERTS-OLD-READ",
    sentence="A file of PEFT before 0.19.1 whose shapes show the order of A and B is loaded.",
    cases=OLD.narrowed(model=("adapted",)),
    level=SHOULD,
    **(OPTIONS | {"weight": 0.25}),
)
def test_older_files_are_read(subject: Subject, case: ExpertFileCase) -> None:
    version = VERSIONS[case.place]
    pairs, tensors = _older(expert_model(subject, case), case, version)
    read = _right_or_refused(subject, case, tensors, fields(case, peft_version=version), pairs)
    require(read, f"load_adapter refused a file of PEFT {version}, whose shapes show the order of A and B")


# a projection that is square for one kind or the other: (kind, adapted projections, k, n)
SQUARES = (("gated", "first", 8, 4), ("interleaved", "down", 6, 6), ("ungated", "both", 5, 5), ("gated", "both", 8, 4))
SQUARE = SIMPLE.narrowed(place=tuple(range(len(SQUARES))), model=("adapted",), kind=("gated",), k=(8,), n=(4,))


def _square(case: ExpertFileCase) -> ExpertFileCase:
    kind, chosen, k, n = SQUARES[case.place]
    return dataclasses.replace(case, kind=kind, chosen=chosen, k=k, n=n)


@clause(
    "CKP-EXPERTS-AMBIGUOUS",
    sentence="""Where A and B of every projection in a file would fit in both orders, peft_version 0.19.1 or later says
    that A reads the inputs; without a version the file is refused with a ValueError. One projection that fits in one
    order only decides for the whole file; two that contradict each other are refused. Whatever is refused changes
    nothing.""",
    why="A file that is loaded in the wrong order gives no error and another function.",
    cases=SQUARE.narrowed(how=("no version", "0.19.1", "0.22.0", "0.18.1", "contradiction")),
    **OPTIONS,
)
def test_files_that_fit_in_both_orders(subject: Subject, case: ExpertFileCase) -> None:
    case = _square(case)
    decided = case.place == 3  # down_proj is not square there
    model, pairs = expert_model(subject, case), drawn_pairs(case)
    version = None if case.how in ("no version", "contradiction") else case.how
    values = fields(case, peft_version=version)
    if case.how in ("0.19.1", "0.22.0"):
        read = _right_or_refused(subject, case, packed(model, pairs), values, pairs)
        require(read, f"load_adapter refused a file with peft_version {version}, in which A reads the inputs")
        return
    if case.how == "0.18.1" or (decided and case.how == "no version"):
        as_now = case.kind == "interleaved"
        _right_or_refused(subject, case, packed(model, pairs if as_now else turned(pairs)), values, pairs)
        return
    if case.how == "contradiction" and decided:
        pairs = turned(pairs, "layers.0.")
    adapt(subject, model, case)
    before = snapshot(model)
    with folder() as path:
        put(Path(path), values, packed(model, pairs))
        error = raised(lambda: subject.target.load_adapter(model, path))
    shapes = "whose projections contradict each other" if decided else "whose A and B fit in both orders"
    what = f"load_adapter of a file without peft_version {shapes}"
    require(isinstance(error, ValueError), f"{what} raised {error!r}: expected a ValueError")
    require_same(before, model, f"{what}, which it refused,")


NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


def keys_of_each(case: ExpertFileCase, pairs: Mapping[str, Pair], *, one_A: bool) -> dict[str, Tensor]:
    """The tensors under keys for each expert; with `one_A` gate and up have one A, else each half of the rank."""
    found = {}
    gate, up, down = NAMES[case.place]
    for full, (A, B) in pairs.items():
        name, _, projection = full.rpartition(".")
        if projection == "gate_up_proj":
            halves = B.chunk(2, 1) if case.kind == "gated" else (B[:, ::2], B[:, 1::2])
            parts = {gate: (A, halves[0]), up: (A if one_A else A.flip(1), halves[1] if one_A else halves[1].flip(2))}
        else:
            parts = {down if projection == "down_proj" else (up if case.place == 0 else gate): (A, B)}
        for key, (a, b) in parts.items():
            for e in range(case.experts):
                found[f"{PREFIX}{name}.{e}.{key}.lora_A.weight"] = a[e]
                found[f"{PREFIX}{name}.{e}.{key}.lora_B.weight"] = b[e]
    return found


@clause(
    "CKP-EXPERTS-EACH",
    sentence="""A file with keys for each expert (`experts.0.gate_proj`, `up_proj` and `down_proj`, or `w1`, `w3` and
    `w2`) is refused with a ValueError and changes nothing, or each expert computes with its updates, whether gate and
    up have one A or two. A file that lacks an expert or one of gate and up is refused.""",
    cases=SIMPLE.narrowed(how=("one A", "two A", "no expert", "no half"), place=(0, 1), r=(2, 3)),
    **OPTIONS,
)
def test_keys_of_each_expert(subject: Subject, case: ExpertFileCase) -> None:
    pairs = drawn_pairs(case)
    tensors = keys_of_each(case, pairs, one_A=case.how != "two A")
    values = fields(case, target_parameters=None, target_modules=list(NAMES[case.place]))
    if case.how.startswith("no "):
        key = NAMES[case.place][1 if case.kind != "ungated" and case.how == "no half" else 2]
        gone = f".{case.experts - 1}.{key}." if case.how == "no expert" or case.kind == "ungated" else f".{key}."
        tensors = {name: tensor for name, tensor in tensors.items() if gone not in name}
        model = expert_model(subject, case)
        with folder() as path:
            put(Path(path), values, tensors)
            fails(subject, model, Path(path), f"a file without {gone.strip('.')} of experts")
        return
    _right_or_refused(subject, case, tensors, values, pairs)


MISFITS = ("an expert more", "another rank", "no lora_B", "a projection less", "an unknown parameter")


@clause(
    "CKP-EXPERTS-MISFIT",
    sentence="""A file whose adapters of experts do not fit the model (another number of experts, a rank that is not
    the config's, a tensor or a projection that is missing, a parameter that the model does not have) is refused by an
    error, and the model does not change.""",
    cases=SIMPLE.narrowed(how=MISFITS, model=("plain", "adapted"), kind=("gated", "interleaved")),
    **OPTIONS,
)
def test_experts_that_do_not_fit(subject: Subject, case: ExpertFileCase) -> None:
    model, pairs, values = expert_model(subject, case), drawn_pairs(case), fields(case)
    tensors = packed(model, pairs)
    last = f"{PREFIX}{list(modules(model))[-1]}."
    if case.how == "an expert more":
        more = {full: tuple(t[[*range(case.experts), 0]] for t in pair) for full, pair in pairs.items()}
        tensors = packed(model, more)  # type: ignore[arg-type]
    elif case.how == "another rank":
        values["r"] = case.r + 1
    elif case.how == "no lora_B":
        del tensors[f"{last}base_layer.lora_B.weight"]
    elif case.how == "a projection less":
        del tensors[f"{last}base_layer.lora_A.weight"], tensors[f"{last}base_layer.lora_B.weight"]
    else:
        values["target_parameters"] = [case.targets[0], "experts.down_projs"]
    if case.model == "adapted":
        adapt(subject, model, case)
    with folder() as path:
        put(Path(path), values, tensors)
        fails(subject, model, Path(path), f"a file with {case.how.replace('no ', 'no tensor ')}")
