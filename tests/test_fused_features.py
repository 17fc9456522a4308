"""Blocks that lack an activation, a gate or biases are judged by the rest; what they lack unsaid fails."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.clauses.fused.block import Block
from conformance.clauses.fused.case import FusedCase
from conformance.judgement.result import Result
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target

FEW = dataclasses.replace(PROFILES["quick"], volume=4, shrinks=0)
LACKING = {f"activation_{name}": "absent" for name in ("gelu", "gelu_tanh", "relu2")}
LACKING |= {"ungated": "absent", "block_bias": "absent", "adapter_dtype": "input dtype"}


class Narrow:
    """SwiGLU and attention without biases, computed in the dtype of x, as many fused kernels are."""

    def project(self, x: Tensor, p: Any) -> Tensor:
        weight, bias, lora_A, lora_B, scale = p
        if bias is not None:
            raise NotImplementedError("a bias")
        base = F.linear(x, weight.detach())
        return base if lora_A is None else base + F.linear(F.linear(x, lora_A.to(x.dtype)), lora_B.to(x.dtype)) * scale

    def silu(self, t: Tensor) -> Tensor:
        return F.silu(t)

    def lora_qkv(self, x: Tensor, q: Any, k: Any, v: Any) -> Any:
        return self.project(x, q), self.project(x, k), self.project(x, v)

    def lora_mlp(self, x: Tensor, gate: Any, up: Any, down: Any, activation: str = "silu") -> Tensor:
        if gate is None or activation != "silu":
            raise NotImplementedError("SwiGLU alone")
        return self.project(self.silu(self.project(x, gate)) * self.project(x, up), down)


class Declared(Narrow):
    """The same, which says what it lacks."""

    CONFORMANCE: ClassVar[dict[str, Any]] = {"features": LACKING}


class Clamps(Declared):
    """A silu that is wrong where its argument is large."""

    def silu(self, t: Tensor) -> Tensor:
        return F.silu(t.clamp(max=20.0))


class ForgetsTheAdapterOfUp(Declared):
    """A block in which one adapter has no effect."""

    def lora_mlp(self, x: Tensor, gate: Any, up: Any, down: Any, activation: str = "silu") -> Tensor:
        return super().lora_mlp(x, gate, (*up[:2], None, None, up[4]), down, activation)


def judged(kind: type, name: str, subject: str, dtype: str = "float32") -> Result:
    """What becomes of one name of a target in a clause."""
    clause, target = load_all(["fused"])[name], Target.of(kind(), kind.__name__)
    (found,) = (found for found in target.subjects(clause) if found.name == subject)
    return Examination(clause, found, dtype, FEW).run()


OF_BOTH = ("FUS-LAYOUT", "FUS-BWD-DX", "FUS-BWD-DB")
CASES = [
    ("FUS-QKV", "lora_qkv"),
    ("FUS-MLP", "lora_mlp"),
    ("FUS-ACTIVATION", "lora_mlp"),
    ("FUS-SATURATED", "lora_mlp"),
]
CASES += [(name, subject) for name in OF_BOTH for subject in ("lora_qkv", "lora_mlp")]


@pytest.mark.parametrize(("name", "subject"), CASES)
def test_blocks_pass_with_what_they_declare_to_lack(name: str, subject: str) -> None:
    result = judged(Declared, name, subject)
    assert result.status == "pass", f"{result.case}\n{result.message}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_adapter_that_is_rounded_to_the_dtype_of_x_passes_where_it_is_declared(dtype: str) -> None:
    for subject in ("lora_qkv", "lora_mlp"):
        result = judged(Declared, "FUS-MIXED", subject, dtype)
        assert result.status == "pass", f"{result.case}\n{result.message}"


def test_where_a_wider_adapter_is_rounded_its_values_are_numbers_of_the_dtype_of_x() -> None:
    case = FusedCase(dtype="bfloat16", adapter="float32", m=2, k=17, n=5, o=3, r=3, values="normal")
    for kind, exact in ((Declared, True), (Narrow, False)):
        (subject,) = Target.of(kind()).subjects(load_all(["fused"])["FUS-QKV"])
        block = Block(subject, case)
        held = torch.from_numpy(block.values["q.lora_A"])
        assert torch.equal(held.bfloat16().double(), held) is exact
        assert block.placed["q.lora_A"].tensor.dtype is torch.float32


def test_what_a_block_lacks_unsaid_fails() -> None:
    result = judged(Narrow, "FUS-MLP", "lora_mlp")
    assert result.status == "fail"
    assert "on an input it declares" in str(result.message)


def test_a_clause_of_what_is_lacking_is_not_claimed() -> None:
    clause = load_all(["fused"])["FUS-BWD-DBIAS"]
    assert Target.of(Declared()).lacking(clause) == ("feature biases in blocks",)
    assert Target.of(Narrow()).lacking(clause) == ()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Clamps, "FUS-SATURATED"), (ForgetsTheAdapterOfUp, "FUS-MLP"), (ForgetsTheAdapterOfUp, "FUS-BWD-DB")],
)
def test_narrow_blocks_that_are_wrong_fail(kind: type, name: str) -> None:
    assert judged(kind, name, "lora_mlp").status == "fail"


def test_a_case_is_changed_by_what_the_subject_lacks_alone() -> None:
    case = FusedCase(activation="gelu", gated=False, bias="all", special="saturated", values="integers")
    (block,) = (
        found for found in Target.of(Declared()).subjects(load_all(["fused"])["FUS-MLP"]) if found.name == "lora_mlp"
    )
    narrow = block.within_limits(case)
    changed = {"activation": "silu", "gated": True, "bias": "none", "special": "steep", "values": "normal"}
    assert narrow == dataclasses.replace(case, **changed)  # type: ignore[arg-type]
    assert block.within_limits(narrow) == narrow
    whole = dataclasses.replace(block, conventions=())
    assert whole.within_limits(case) == case


def test_a_steep_block_has_arguments_beyond_the_flat_ends_of_its_activation() -> None:
    from conformance.clauses.fused.values import drawn

    case = FusedCase(m=5, k=17, n=16, o=3, r=3, values="normal", special="steep")
    found = {name: torch.from_numpy(value) for name, value in drawn(case, "lora_mlp", 2**24).items()}
    gate = found["x"] @ (found["gate.weight"] + found["gate.lora_B"] @ found["gate.lora_A"]).T
    assert "gate.bias" not in found
    assert gate.max() > 20
    assert gate.min() < -20
