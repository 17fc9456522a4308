"""A third-party encryption backend: it is judged as a target, and a split model runs on it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from conformance.judgement.result import ANY_DTYPE
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import REGISTRY, load_all
from conformance.target.target import Target
from reference import HybridFHEModel
from reference.encrypted.encryption import ConcreteBackend, noise_of
from tests.baselines.fhe_backend import Lattice, Right
from tests.campaigns.noise_law import TOY_FAST
from tests.support.commands import judged

load_all()
OF_BACKENDS = [clause for clause in REGISTRY.values() if clause.subjects == ("fhe_backend",)]


def failed(thing: Any, *ids: str, volume: int = 6) -> list[str]:
    """Messages of the backend clauses that `thing` fails; with ids, of those clauses only."""
    profile = dataclasses.replace(PROFILES["quick"], volume=volume)
    target = Target.of(thing, "backend")
    messages = []
    for clause in OF_BACKENDS:
        if not ids or clause.id in ids:
            (subject,) = target.subjects(clause)
            result = Examination(clause, subject, ANY_DTYPE, profile).run()
            messages += [f"{clause.id}: {result.message}"] if result.status != "pass" else []
    return messages


class Noisy(Right):
    error = 3.0


class OfParameters:
    """A target that offers the library's backend with given parameters."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters

    def fhe_backend(self) -> ConcreteBackend:
        return ConcreteBackend(self.parameters)


def test_a_target_with_only_a_backend_claims_only_the_backend_clauses() -> None:
    report = judged("lattice", groups=["fhe"])
    status = {clause.id: clause.status for clause in report.clauses}
    assert {name for name, found in status.items() if found == "pass"} == {clause.id for clause in OF_BACKENDS}
    assert {found for name, found in status.items() if not name.startswith("FHE-BACKEND")} == {"not_claimed"}
    others = next(clause for clause in report.clauses if clause.id == "FHE-DISABLE")
    assert others.message == "the target has no HybridFHEMode, HybridFHEModel"


def test_a_target_with_only_a_model_needs_no_backend() -> None:
    target = Target.of(type("Models", (), {"HybridFHEMode": 1, "HybridFHEModel": 2}))
    assert "fhe" in target.claimed
    assert {target.lacking(clause) for clause in OF_BACKENDS} == {("fhe_backend",)}
    assert [s.name for s in target.subjects(REGISTRY["FHE-DISABLE"])] == ["HybridFHEModel"]


def test_noise_that_follows_the_backends_declared_law_passes() -> None:
    assert not failed(Noisy())


def test_the_library_passes_with_toy_parameters() -> None:
    pytest.importorskip("concrete_ml_extensions")
    from conformance.targets import concrete

    assert not failed(concrete, volume=2)


def test_the_librarys_noise_follows_its_law() -> None:
    pytest.importorskip("concrete_ml_extensions")
    assert not failed(OfParameters(TOY_FAST), "FHE-BACKEND-NOISE", "FHE-BACKEND-PRODUCT")


def model(**options: Any) -> tuple[HybridFHEModel, torch.Tensor]:
    torch.manual_seed(0)
    split = HybridFHEModel(nn.Sequential(nn.Linear(6, 4)), ["0"], **options)
    x = torch.randn(40, 6)
    split.compile_model(x)
    return split, x


def test_a_split_model_runs_on_a_third_party_backend() -> None:
    split, x = model(backend=Lattice())  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="lattice, insecure: for tests alone"):
        assert torch.equal(split(x, fhe="execute"), split(x, fhe="disable"))
    assert torch.equal(split(x, fhe="simulate"), split(x, fhe="disable"))  # Lattice declares that it adds no noise


def test_simulated_noise_and_the_range_check_follow_the_backends_law() -> None:
    backend: Any = Lattice(error=3.0)
    split, x = model(backend=backend)
    weight = split.remote_modules["0"].quantized.weight  # type: ignore[union-attr]
    assert torch.equal(split.remote_modules["0"].noise_std, noise_of(backend, weight))  # type: ignore[arg-type]
    assert not torch.equal(split(x, fhe="simulate"), split(x, fhe="disable"))
    with pytest.raises(ValueError, match=r"0: n_bits = 8 and 6 features allow products up to .*, with noise up to"):
        model(backend=Lattice(error=3e5))
