"""What a library on several ranks lacks, or does otherwise, does not hide whether it is right."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

import reference
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.known_bad.distributed.tensor_parallel import MergesAShareOfTheUpdate

FEW = dataclasses.replace(PROFILES["quick"], volume=8, shrinks=0)
WITHOUT_STYLES = {"DIS-BIAS", "DIS-SHARE", "DIS-REPLICAS", "DIS-MERGE", "DIS-CKP"}


def target(norm: Any = reference.clip_grad_norm_, layer: Any = reference.LinearLoRA, **features: str) -> Target:
    """A target without tensor-parallel styles that declares some features."""
    return Target.of(
        SimpleNamespace(LinearLoRA=layer, clip_grad_norm_=norm, CONFORMANCE={"features": features}), "mine"
    )


def judged(name: str, one: Target, dtype: str = "float32") -> Any:
    """The result of a target in a clause."""
    (subject,) = one.subjects(load_all()[name])
    return Examination(load_all()[name], subject, dtype, FEW).run()


def narrow(parameters: Any, max_norm: float, error_if_nonfinite: bool = False) -> Any:
    """The norm in the gradients' dtype, as torch has it."""
    held = [*parameters]
    return reference.clip_grad_norm_(held, max_norm, error_if_nonfinite).to(held[0].dtype)


def own_part(parameters: Any, max_norm: float, error_if_nonfinite: bool = False) -> Any:
    """The norm of this rank's part of the gradients, in their dtype."""
    held = [*parameters]
    parts = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in held]
    beside = [torch.nn.Parameter(part.clone()) for part in parts]
    for parameter, part in zip(beside, parts, strict=True):
        parameter.grad = part
    return narrow(beside, max_norm, error_if_nonfinite)


def one_mesh(parameters: Any, max_norm: float, error_if_nonfinite: bool = False) -> Any:
    """The norm of gradients that are all on one mesh."""
    held = [*parameters]
    meshes = {p.grad.device_mesh if isinstance(p.grad, DTensor) else None for p in held}
    if len(meshes) > 1:
        raise RuntimeError("gradients on several meshes")
    return reference.clip_grad_norm_(held, max_norm, error_if_nonfinite)


def test_a_norm_in_the_gradients_dtype_is_a_convention() -> None:
    declared = {"norm_dtype": "gradients"}
    for name in ("DIS-NORM", "DIS-CLIP"):
        assert judged(name, target(narrow, **declared), "bfloat16").status == "pass"
    assert "expected torch.float32" in judged("DIS-NORM", target(narrow), "bfloat16").message
    assert "norm on rank" in judged("DIS-NORM", target(own_part, **declared), "bfloat16").message


def test_a_norm_over_several_meshes_may_be_refused_and_must_not_be_wrong() -> None:
    lacks = {"mixed_meshes": "absent"}
    for name in ("DIS-NORM", "DIS-CLIP"):
        assert judged(name, target(one_mesh, **lacks)).status == "pass"
    assert "gradients on several meshes" in judged("DIS-NORM", target(one_mesh)).message
    assert "norm on rank" in judged("DIS-NORM", target(own_part, **lacks)).message


def alone(parameters: Any, *_: Any) -> Any:
    """The norm, or on the first rank an error."""
    if not torch.distributed.get_rank() and any(not isinstance(p.grad, DTensor) for p in parameters):
        raise RuntimeError("plain tensors")
    return torch.ones(())


def test_gradients_that_one_rank_refuses_are_no_refusal() -> None:
    result = judged("DIS-NORM", target(alone, mixed_meshes="absent"))
    assert result.status == "fail"


def test_a_target_without_styles_is_judged_under_data_parallelism() -> None:
    one = target()
    claimed = {clause.id for clause in load_all().values() if clause.group == "distributed" and one.subjects(clause)}
    assert claimed >= WITHOUT_STYLES
    assert not claimed & {"DIS-COLWISE", "DIS-ROWWISE", "DIS-ADAPTER"}
    for name in WITHOUT_STYLES:
        result = judged(name, one, "bfloat16" if name == "DIS-CKP" else "float32")
        assert result.status == "pass", f"{name}: {result.message}"


class WithoutBias(reference.LinearLoRA):
    """A layer on a base without a bias."""

    def __init__(self, linear: torch.nn.Linear, **options: Any) -> None:
        if linear.bias is not None:
            raise NotImplementedError("a base with a bias")
        super().__init__(linear, **options)


def test_a_layer_without_a_bias_is_judged_without_one() -> None:
    one = target(layer=WithoutBias, base_bias="absent")
    assert not one.subjects(load_all()["DIS-BIAS"])
    for name, dtype in (("DIS-CKP", "bfloat16"), ("DIS-SHARE", "float32")):
        result = judged(name, one, dtype)
        assert result.status == "pass", f"{name}: {result.message}"


def test_a_defect_is_seen_without_styles() -> None:
    result = judged("DIS-MERGE", target(layer=MergesAShareOfTheUpdate))
    assert "the weight after merge()" in result.message


class Renamed(reference.LinearLoRA):
    """A layer whose state_dict has names of its own."""

    def state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().state_dict(*args, **options)
        return type(found)((f"held.{name}", value) for name, value in found.items())

    def load_state_dict(self, state: Any, *args: Any, **options: Any) -> Any:
        return super().load_state_dict({name[5:]: value for name, value in state.items()}, *args, **options)


class RenamedInShards(Renamed):
    """A layer whose state_dict has other names as soon as it is sharded."""

    def state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().state_dict(*args, **options)
        sharded = any(isinstance(value, DTensor) for value in found.values())
        return {f"shard.{name[5:]}" if sharded else name: value for name, value in found.items()}


def test_a_sharded_state_dict_has_the_names_of_the_whole_one_whichever_they_are() -> None:
    other = {"state_names": "other"}
    assert judged("DIS-CKP", target(layer=Renamed, **other), "bfloat16").status == "pass"
    assert "expected ['bias'" in judged("DIS-CKP", target(layer=Renamed), "bfloat16").message
    assert "expected ['held.bias'" in judged("DIS-CKP", target(layer=RenamedInShards, **other), "bfloat16").message


@pytest.mark.filterwarnings("ignore")
def test_models_of_peft_pass_under_ddp_and_fsdp() -> None:
    pytest.importorskip("peft")
    one = Target.load("conformance.targets.peft_distributed")
    for name in ("DIS-DDP", "DIS-FSDP", "DIS-ACCUM", "DIS-STEP", "DIS-SHARE"):
        dtype = "float64" if name == "DIS-STEP" else "float32"
        result = judged(name, one, dtype)
        assert result.status == "pass", f"{name}: {result.message}"
