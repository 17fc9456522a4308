"""Adapting a model: what is refused or warned of, in which words, and that a failed call changes nothing."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import optimized
import reference
from conformance.clauses.model.small_models import DoublingLinear, Toy
from reference.rollback import undone_on_error

both = pytest.mark.parametrize("implementation", [reference, optimized])


def apply(implementation: ModuleType, model: nn.Module, **options: Any) -> int:
    count: int = implementation.apply_lora_to_linear_modules(model, implementation.PeftConfig(dim=2, **options))
    return count


@both
def test_a_layer_that_cannot_be_adapted_is_named_with_the_reason(implementation: ModuleType) -> None:
    model: Any = Toy()
    model.head.weight = nn.Parameter(torch.ones(5, 6, dtype=torch.uint8), requires_grad=False)
    expected = (
        r"^head: the weight of this Linear is torch.uint8 \[5, 6\] and no way to dequantize it is known: expected "
    )
    for lora_dtype in (None, torch.float32):
        with pytest.raises(ValueError, match=expected):
            apply(implementation, model, match_all_linear=True, lora_dtype=lora_dtype)
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if name != "head.weight")
    model.head = nn.LazyLinear(5)
    with pytest.raises(
        ValueError, match=r"^head: the weight of this LazyLinear is not initialised: call the model once"
    ):
        apply(implementation, model, match_all_linear=True)


class Packed(DoublingLinear):
    """A layer with an integer weight, which its own forward turns into numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.to(x.dtype) / 16).T


class Dequantizable(Packed):
    """A layer that says which numbers its integers stand for."""

    def dequantize(self) -> torch.Tensor:
        return self.weight.float() / 16


@both
@pytest.mark.parametrize("kind", [Packed, Dequantizable])
def test_a_packed_weight_needs_a_way_to_dequantize_it(implementation: ModuleType, kind: type[Packed]) -> None:
    base, x = kind(4, 3, bias=False), torch.randn(2, 4)
    base.weight = nn.Parameter(torch.arange(12, dtype=torch.uint8).view(3, 4), requires_grad=False)
    if kind is Packed:
        with pytest.raises(ValueError, match=r"Packed is torch.uint8 \[3, 4\] and no way to dequantize it is known"):
            implementation.patch_linear_module(base, dim=2, lora_dtype="float32")
        assert type(base) is Packed
        return
    expected = base(x)
    layer = implementation.patch_linear_module(base, dim=2)
    assert torch.equal(layer(x), expected)
    assert layer.lora_A.weight.dtype == torch.float32


@both
def test_an_unexpected_error_undoes_what_was_done(implementation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory may run out at any layer."""
    made: list[Any] = []

    def empty_linear(*sizes: int, **options: Any) -> nn.Linear:
        made.append(sizes)
        if len(made) == 6:
            raise MemoryError
        return real(*sizes, **options)

    from reference import layer

    real = layer.empty_linear
    monkeypatch.setattr(layer, "empty_linear", empty_linear)
    model = Toy()
    kinds, names = [type(module) for module in model.modules()], [name for name, _ in model.named_parameters()]
    with pytest.raises(MemoryError):
        apply(implementation, model, match_all_linear=True)
    assert [type(module) for module in model.modules()] == kinds
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_rollback_restores_dicts_in_place() -> None:
    module = nn.Linear(2, 2)
    handle = module.register_forward_hook(lambda *_: None)

    def change() -> None:
        with undone_on_error([module], module.parameters()):
            module.register_forward_hook(lambda *_: None)
            module.weight.requires_grad_(False)
            module.added = 1  # type: ignore[assignment]
            raise KeyError

    with pytest.raises(KeyError):
        change()
    assert module.weight.requires_grad
    assert not hasattr(module, "added")
    handle.remove()
    assert not module._forward_hooks


@both
def test_a_pattern_without_a_layer_is_named_with_the_nearest_name(implementation: ModuleType) -> None:
    with pytest.warns(UserWarning, match="'k_proj' of target_modules .* did you mean 'q_proj'") as caught:
        apply(implementation, Toy(), target_modules=["q_proj", "k_proj"])
    assert [w.filename for w in caught] == [__file__], "the warning points to the caller"
    with pytest.warns(UserWarning, match="'heads' of exclude_modules matches no linear module of the model: did you"):
        apply(implementation, Toy(), exclude_modules=["heads"])
    apply(implementation, Toy(), target_modules=["q_proj", "fc1"])


@both
def test_a_subclass_of_conv1d_is_left_alone_by_name(implementation: ModuleType) -> None:
    conv = pytest.importorskip("transformers").pytorch_utils.Conv1D
    kind: Any = type("OwnConv1D", (conv,), {})
    model = nn.ModuleDict({"c_attn": kind(4, 4), "c_proj": conv(4, 3)})
    with pytest.warns(UserWarning, match="c_attn is left alone: OwnConv1D is a subclass of Conv1D"):
        assert apply(implementation, model, target_modules=["c_attn", "c_proj"]) == 1
    with pytest.raises(ValueError, match=r"OwnConv1D is a subclass of Conv1D.* expected Conv1D itself"):
        implementation.patch_linear_module(kind(4, 4))
