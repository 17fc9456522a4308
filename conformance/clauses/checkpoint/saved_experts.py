"""The files of `save_adapter` for adapters on experts: layout, ranks and scales, keys for each expert, merging."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conformance.clauses.checkpoint.expert_model import (
    EXPERT_FILES,
    NEEDS,
    SIMPLE,
    ExpertFileCase,
    ExpertModel,
    expert_model,
    modules,
    output,
    packed,
    pairs_of,
    require_output,
    scales_in,
    trained,
    with_updates,
)
from conformance.clauses.checkpoint.layer_patterns import pattern_value
from conformance.clauses.checkpoint.peft_files import CONFIG, PREFIX, TENSORS, config_in, tensors_in
from conformance.clauses.checkpoint.target_calls import equal_bits, folder, load, raised, save
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling, fault_of
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

ONE = ("float32",)
SCALED = (*NEEDS, "PeftConfig(moe_rank_scaling)")


def _require_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    require(not missing, f"{TENSORS} lacks {', '.join(missing)}: it has {', '.join(sorted(found))}")
    require(not extra, f"{TENSORS} has {', '.join(extra)}: expected {', '.join(sorted(expected))}")
    for name, tensor in expected.items():
        got, wanted = (found[name].dtype, list(found[name].shape)), (tensor.dtype, list(tensor.shape))
        require(got == wanted, f"{name} is {got[0]} {got[1]}: expected {wanted[0]} {wanted[1]}")
        require(equal_bits(found[name], tensor), f"{name} has other values than the adapters of its experts")


@clause(
    "CKP-EXPERTS-LAYOUT",
    sentence="""save_adapter writes the adapters of experts as PEFT does: lora_A.weight [r·E, K], one expert after the
    other, and lora_B.weight [N, r·E] with expert e in the columns e, e + E, …, under the module's name, with one more
    `base_layer.` for each adapted projection that the module registers later. Each has the dtype and bits of the
    adapters. target_parameters names the adapted parameters and no other, and lora_dropout is 0, with a warning if it
    was not.""",
    cases=EXPERT_FILES.narrowed(model=("plain",), how=("", "dropout")),
    needs=NEEDS,
    weight=0.5,
)
def test_layout_of_experts(subject: Subject, case: ExpertFileCase) -> None:
    model, config = trained(subject, case, **({"dropout": 0.25} if case.how else {}))
    with folder() as path:
        with warnings.catch_warnings(record=True) as caught, calling("save_adapter(model, config, path)"):
            warnings.simplefilter("always")
            subject.target.save_adapter(model, config, str(path))
        found, values = tensors_in(Path(path)), config_in(Path(path))
    with fault_of("save_adapter"):
        pairs = pairs_of(subject, model, case)
        _require_tensors(found, packed(model, pairs))
        targets = values.get("target_parameters") or []
        everything = [f"{name}.{p}" for name, module in modules(model).items() for p in _projections(module)]
        named = [full for full in everything if any(full == t or full.endswith(f".{t}") for t in targets)]
        require(sorted(named) == sorted(pairs), f"target_parameters = {targets} names {named}: expected {list(pairs)}")
        dropout = values.get("lora_dropout")
        require(not dropout, f"{CONFIG} has lora_dropout = {dropout}: PEFT has none for parameters, expected 0.0")
        warned = any("dropout" in str(warning.message) for warning in caught)
        require(warned or not case.how, "save_adapter gave no warning that the files leave dropout out")


def _projections(module: Any) -> list[str]:
    return [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3]


@clause(
    "CKP-EXPERTS-RANK",
    sentence="""With moe_rank_scaling, r and rank_pattern of the saved file give each parameter of experts the rank of
    its tensors, and lora_alpha and alpha_pattern its scale; the file loads into a model without adapters with the same
    output, or is refused there with a ValueError.""",
    why="A file with the rank before the division loads with other shapes or another scale.",
    cases=SIMPLE.narrowed(r=(4, 6), how=("", "rank_pattern", "rslora"), chosen=("both", "first", "down")),
    dtypes=("float64",),
    needs=SCALED,
    weight=0.5,
)
def test_ranks_in_the_file(subject: Subject, case: ExpertFileCase) -> None:
    changed: dict[str, Any] = {"rslora": {"use_rslora": True}, "rank_pattern": {"rank_pattern": {r"(.*)_proj": 2}}}
    model, config = trained(subject, case, moe_rank_scaling=True, **changed.get(case.how, {}))
    plain, pairs = expert_model(subject, case), pairs_of(subject, model, case)
    with folder() as path:
        save(subject, model, config, path)
        values = config_in(Path(path))
        with fault_of("save_adapter"):
            scales = scales_in(values, pairs)
            for full, (A, _) in pairs.items():
                r = pattern_value(values.get("rank_pattern") or {}, full, values["r"])
                require(r == A.shape[1], f"{CONFIG} gives {full} the rank {r}: its adapter has {A.shape[1]}")
            require_output(with_updates(plain, pairs, scales), model, case, "the output with the scale of the file")
        error = raised(lambda: subject.target.load_adapter(plain, str(path)))
    with fault_of("load_adapter"):
        if error is not None:
            require(isinstance(error, ValueError), f"load_adapter raised {error!r}: expected the output or ValueError")
            return
        require_output(plain, model, case, "loaded into a model without adapters, the output")


@clause(
    "CKP-EXPERTS-ROUND-TRIP",
    sentence="""Saved adapters of experts loaded into an adapted model with the same base give the saved parameters and
    the same output, bit for bit.""",
    cases=EXPERT_FILES.narrowed(model=("adapted",)),
    needs=NEEDS,
    weight=0.34,
)
def test_round_trip_of_experts(subject: Subject, case: ExpertFileCase) -> None:
    model, config = trained(subject, case)
    other, _ = trained(subject, case)
    with torch.no_grad():
        for pair in pairs_of(subject, other, case).values():
            for tensor in pair:
                tensor.mul_(-2)
    with folder() as path:
        save(subject, model, config, path)
        load(subject, other, path)
        found = tensors_in(Path(path))
    right, loaded = pairs_of(subject, model, case), pairs_of(subject, other, case)
    whole = all(name in found and equal_bits(found[name], tensor) for name, tensor in packed(model, right).items())
    with fault_of("load_adapter" if whole else "save_adapter"):
        for full, pair in right.items():
            for side, one, two in zip(("lora_A", "lora_B"), pair, loaded[full], strict=True):
                require(equal_bits(one, two), f"{side} of {full} is not what was saved")
        require(equal_bits(output(model, case), output(other, case)), "the output is not that of the saved model")


@clause(
    "CKP-EXPERTS-KEYS",
    sentence="""With expert_keys="gate_up_down" save_adapter writes `experts.<e>.gate_proj`, `up_proj` and `down_proj`,
    with "w1_w3_w2" `w1`, `w3` and `w2`: gate and up both have A_e, and each the rows of B_e that are its own,
    interleaved or not. The tensors have the dtype and bits of the adapters.""",
    cases=SIMPLE.narrowed(place=(0, 1), chosen=("both", "first", "down")),
    dtypes=ONE,
    needs=(*NEEDS, "save_adapter(expert_keys)"),
    weight=0.5,
)
def test_keys_for_each_expert(subject: Subject, case: ExpertFileCase) -> None:
    how = ("gate_up_down", "w1_w3_w2")[case.place]
    gate, up, down = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))[case.place]
    model, config = trained(subject, case)
    expected: dict[str, Tensor] = {}
    for full, (A, B) in pairs_of(subject, model, case).items():
        name, _, projection = full.rpartition(".")
        halves = {"gated": B.chunk(2, 1), "interleaved": (B[:, ::2], B[:, 1::2])}
        rows = {down: B} if projection == "down_proj" else {"up_proj" if how == "gate_up_down" else gate: B}
        if projection == "gate_up_proj":
            rows = dict(zip((gate, up), halves[case.kind], strict=True))
        for key, own in rows.items():
            for e in range(case.experts):
                expected[f"{PREFIX}{name}.{e}.{key}.lora_A.weight"] = A[e].detach()
                expected[f"{PREFIX}{name}.{e}.{key}.lora_B.weight"] = own[e].detach()
    with folder() as path:
        with calling_quietly(f"save_adapter(model, config, path, expert_keys={how!r})"):
            subject.target.save_adapter(model, config, str(path), expert_keys=how)
        with fault_of("save_adapter"):
            _require_tensors(tensors_in(Path(path)), expected)


@clause(
    "CKP-EXPERTS-MERGED",
    sentence="""Merged experts give the output of the adapted ones after loading, saving merged experts saves their
    adapters, and loading into merged experts gives the output of the unmerged ones with the loaded adapter.""",
    cases=SIMPLE.narrowed(how=("save", "load", "merge after loading"), chosen=("both", "first")),
    dtypes=("float64",),
    needs=(*NEEDS, "GroupedExpertsLoRA.merge"),
    weight=0.5,
)
def test_merged_experts_in_files(subject: Subject, case: ExpertFileCase) -> None:
    model, config = trained(subject, case)
    other, _ = trained(subject, case)
    with torch.no_grad():
        for pair in pairs_of(subject, other, case).values():
            for tensor in pair:
                tensor.mul_(-2)
    whole = copy.deepcopy(model)
    if case.how != "merge after loading":
        _merge(model if case.how == "save" else other)
    with folder() as path:
        save(subject, model, config, path)
        load(subject, other, path)
    with fault_of("save_adapter" if case.how == "save" else "load_adapter"):
        require_output(other, whole, case, f"after {case.how}, the output")
        _merge(other)
        require_output(other, whole, case, "after loading and merging, the output")


def _merge(model: ExpertModel) -> None:
    for name, module in modules(model).items():
        with calling(f"merge() of {name}"):
            module.merge()
