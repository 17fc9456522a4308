"""Experts of reference and optimized: what is refused, which modules are chosen, and what a patched module keeps."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import optimized
import reference
from conformance.clauses.experts.mixture import Mixture
from conformance.clauses.experts.mixture_case import MixtureCase

PACKAGES = pytest.mark.parametrize("package", [reference, optimized], ids=["reference", "optimized"])


class Experts(nn.Module):
    """Ungated experts of transformers' protocol, with an attribute `alpha` of their own."""

    has_gate, has_bias, is_transposed, is_concatenated, has_post_expert_norm = False, False, False, True, False

    def __init__(self, experts: int = 3, inner: int = 6, hidden: int = 4, slots: int = 2) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(experts, inner, hidden))
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, inner))
        self.act_fn = nn.ReLU()
        self.alpha, self.config = 1.702, SimpleNamespace(num_experts_per_tok=slots)

    def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        y = torch.zeros_like(hidden_states)
        for t, j in [(t, j) for t in range(len(top_k_index)) for j in range(top_k_index.shape[1])]:
            e = top_k_index[t, j]
            y[t] += top_k_weights[t, j] * (self.down_proj[e] @ self.act_fn(self.up_proj[e] @ hidden_states[t]))
        return y


def test_a_fresh_adapter_keeps_the_bits_of_a_gate_that_is_interleaved() -> None:
    mixture = Mixture(MixtureCase(26, m=5, k=8, n=8, r=2, experts=3, slots=2, kind="interleaved", scale=2.0))
    given = mixture.tensor("x"), torch.from_numpy(mixture.index.copy()), mixture.tensor("p")
    with torch.no_grad():
        before = mixture.experts(*given)
        assert torch.equal(optimized.patch_moe_module(mixture.experts)(*given), before)


class Model(nn.Module):
    """A router, experts and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts, self.q_proj = nn.Linear(4, 3), Experts(), nn.Linear(4, 4)


def operands(**changes: Any) -> tuple[Any, ...]:
    values = {"x": torch.randn(5, 4), "index": torch.tensor([0, 2, 1, 0, 2]), "weight": torch.randn(3, 6, 4)}
    values |= {"bias": None, "lora_A": torch.randn(3, 2, 4), "lora_B": torch.randn(3, 6, 2)} | changes
    return (*values.values(), 2.0)


@PACKAGES
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": torch.zeros(4, dtype=torch.int64)}, r"expert_index is \[4\] but x is \[5, 4\]: expected \[5\]"),
        ({"index": torch.zeros(5)}, r"expert_index is torch.float32: expected torch.int64 or torch.int32"),
        ({"lora_B": torch.randn(2, 6, 2)}, r"lora_B is \[2, 6, 2\] but lora_A is \[3, 2, 4\]: their first dimensions"),
        ({"weight": torch.randn(4, 6, 4)}, r"weight is \[4, 6, 4\] but lora_A is \[3, 2, 4\]"),
        ({"lora_A": torch.randn(3, 2, 5)}, r"of one expert, lora_A is \[2, 5\] but x has 4 features"),
        ({"weight": torch.randn(6, 4)}, r"weight is \[6, 4\]: expected \[E, N, K\] with one expert at least"),
    ],
)
def test_operands_that_do_not_fit(package: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        package.lora_grouped_linear(*operands(**changes))


@PACKAGES
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([3, 1, 5], r"offsets\[1\] = 1 is below 3, where the expert's rows begin: they may not decrease"),
        ([1, 3, 6], r"offsets\[2\] = 6 but x has 5 rows: expected at most that"),
        ([1, 5], r"offsets is \[2\] but lora_A has 3 experts: expected \[3\]"),
        ([1.0, 3.0, 5.0], r"offsets is torch.float32: expected torch.int32 or torch.int64"),
    ],
)
def test_offsets_that_do_not_fit(package: Any, offsets: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        package.lora_grouped_linear_sorted(*operands(index=torch.tensor(offsets)))


def without(name: str) -> Experts:
    class Other(Experts):
        pass

    module = Other()
    if name == "is_transposed":
        module.is_transposed = None  # type: ignore[assignment]
    elif name == "down_proj":
        del module.down_proj
    elif name == "quantised":
        module.up_proj = nn.Parameter(torch.zeros(3, 6, 4, dtype=torch.int8), requires_grad=False)
    elif name == "chain":
        module.down_proj = nn.Parameter(torch.randn(3, 4, 5))
    return module


class NoIndices(Experts):
    def forward(self, hidden_states: Any) -> Any:  # type: ignore[override]
        return hidden_states


@PACKAGES
@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (NoIndices, {}, r"NoIndices has forward\(hidden_states\): expected forward\(hidden_states, top_k_index"),
        (lambda: without("is_transposed"), {}, "Other has no attribute is_transposed, so that nothing says how"),
        (lambda: without("down_proj"), {}, "Other has no 3-D Parameter down_proj: expected up_proj and down_proj"),
        (lambda: without("quantised"), {}, "up_proj of this Other is torch.int8: expected one of bfloat16"),
        (lambda: without("chain"), {}, r"do not chain as weights stored \[experts, out, in\]"),
        (Experts, {"dim": 0}, "dim = 0: expected an int of at least 1"),
        (Experts, {"dropout": 1.5}, r"dropout = 1.5: expected a probability in \[0, 1\]"),
        (Experts, {"lora_A_init_method": "zeros"}, "lora_A_init_method = 'zeros': expected one of"),
        (
            Experts,
            {"projections": ["gate_proj"]},
            "has 'gate_proj', which Experts does not have: the nearest .*up_proj",
        ),
        (Experts, {"projections": []}, r"projections = \[\]: expected one at least of up_proj, down_proj"),
    ],
)
def test_a_refused_module_is_unchanged(package: Any, module: Any, options: dict[str, Any], message: str) -> None:
    experts = module()
    before = {**vars(experts)}, type(experts), [p.requires_grad for p in experts.parameters()]
    with pytest.raises(ValueError, match=message):
        package.patch_moe_module(experts, **options)
    assert ({**vars(experts)}, type(experts), [p.requires_grad for p in experts.parameters()]) == before


@PACKAGES
def test_a_second_patch_is_refused(package: Any) -> None:
    experts = package.patch_moe_module(Experts())
    with pytest.raises(ValueError, match="already has an adapter: expected experts without one"):
        package.patch_moe_module(experts)


@PACKAGES
def test_a_patched_module_keeps_its_attributes_and_can_be_copied(package: Any) -> None:
    experts = package.patch_moe_module(Experts(), 2)
    nn.init.normal_(experts.lora_B["up_proj"])
    x, index, p = torch.randn(5, 4), torch.tensor([[0, 1], [2, 2], [1, 0], [-1, 2], [3, -1]]), torch.rand(5, 2)
    y = experts(hidden_states=x, top_k_index=index, top_k_weights=p)
    assert experts.alpha == 1.702
    assert not y[4].any()
    for other in (copy.deepcopy(experts), pickle.loads(pickle.dumps(experts))):
        assert torch.equal(other(x, index, p), y)


@PACKAGES
def test_target_parameters_choose_experts_and_nothing_else(package: Any) -> None:
    model = Model()
    count = package.apply_lora_to_linear_modules(
        model, package.PeftConfig(target_parameters=["experts.up_proj", "experts.down_proj"], dim=4)
    )
    assert count == 1
    assert isinstance(model.experts, package.GroupedExpertsLoRA)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"experts.lora_{side}.{name}" for side in "AB" for name in ("up_proj", "down_proj")
    }


@PACKAGES
def test_ranks_of_experts(package: Any) -> None:
    model = Model()
    options = {"target_parameters": ["up_proj", "down_proj"], "rank_pattern": {"experts.down_proj": 6}}
    package.apply_lora_to_linear_modules(model, package.PeftConfig(**options, dim=4, alpha=8, moe_rank_scaling=True))
    experts: Any = model.experts
    assert (experts.lora_A["up_proj"].shape[1], experts.lora_A["down_proj"].shape[1]) == (2, 3)
    assert experts.scales == {"up_proj": 4.0, "down_proj": 8 / 3}
    with pytest.raises(ValueError, match="dim = 5 is not divisible by num_experts_per_tok = 2, by which"):
        package.apply_lora_to_linear_modules(
            Model(), package.PeftConfig(target_parameters="up_proj", dim=5, moe_rank_scaling=True)
        )


@PACKAGES
def test_warnings_name_what_is_not_adapted(package: Any) -> None:
    with pytest.warns(UserWarning, match="'experts.up_prj' of target_parameters matches no .* 'experts.up_proj'"):
        package.apply_lora_to_linear_modules(Model(), package.PeftConfig(target_parameters=["experts.up_prj"]))
    with pytest.warns(UserWarning, match="leaves the experts experts.up_proj, experts.down_proj without adapters"):
        package.apply_lora_to_linear_modules(Model(), package.PeftConfig(match_all_linear=True))


@PACKAGES
def test_experts_have_no_dora(package: Any) -> None:
    model = Model()
    with pytest.raises(ValueError, match="experts: use_dora = True: experts have no DoRA"):
        package.apply_lora_to_linear_modules(model, package.PeftConfig(target_parameters=["up_proj"], use_dora=True))
    assert type(model.experts) is Experts


@PACKAGES
def test_a_model_merges_its_experts(package: Any) -> None:
    model = Model()
    package.apply_lora_to_linear_modules(model, package.PeftConfig(target_parameters=["up_proj"], dim=2))
    experts: Any = model.experts
    nn.init.normal_(experts.lora_B["up_proj"])
    before, state = experts.up_proj.clone(), copy.deepcopy(model.state_dict())
    assert package.merge_adapters(model) == 1
    update = experts.scale * experts.lora_B["up_proj"] @ experts.lora_A["up_proj"]
    torch.testing.assert_close(experts.up_proj, before + update)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert package.unmerge_adapters(model) == 1
    assert torch.equal(experts.up_proj, before)
