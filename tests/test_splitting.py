"""A split model: its weights leave the client, its files are checked, and the fast integer routes are bit-equal."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optimized
from reference import HybridFHEModel, LoraTraining, PeftConfig, apply_lora_to_linear_modules, get_remote_names
from reference.quantization import quantize_dynamic
from reference.service.linear_product import product_of
from reference.service.weight_version import some_of

pytestmark = pytest.mark.usefixtures("set_aside")  # clearing weights collects garbage, and looks for their holders
X, LABELS = torch.linspace(-1, 1, 30).reshape(5, 6), torch.tensor([0, 1, 2, 0, 1])


def training(dora: bool = False) -> LoraTraining:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    apply_lora_to_linear_modules(model, PeftConfig(target_modules=["*"], dim=2, alpha=4, use_dora=dora))
    trained = LoraTraining(model)
    trained.update_training_parameters(loss_fn=nn.functional.cross_entropy)
    return trained


def split(trained: LoraTraining | None = None, **options: Any) -> HybridFHEModel:
    trained = trained or training()
    hybrid = HybridFHEModel(trained, get_remote_names(trained), "http://127.0.0.1:9", **options)
    hybrid.compile_model((X, LABELS))
    return hybrid


def holding(pattern: Tensor) -> int:
    """The number of tensors and arrays in this process that hold these values."""
    gc.collect()
    kinds = (Tensor, nn.Parameter, np.ndarray)  # and not the fake tensors of a compiler
    held = [t for t in gc.get_objects() if type(t) in kinds and tuple(t.shape) == pattern.shape]
    return sum(torch.equal(torch.as_tensor(t).double(), pattern) for t in held if getattr(t, "device", None) != META)


META = torch.device("meta")


class TestClearing:
    def test_clearing_leaves_no_weight_and_only_mode_remote(self, tmp_path: Path) -> None:
        hybrid = split()
        layer: Any = hybrid.model.inference_model[2]
        name = "inference_model.2.base_layer.forward_module"
        quantized: Any = hybrid.remote_modules[name].quantized
        patterns = [layer.weight.detach().double().numpy().tolist(), quantized.weight.double().numpy().tolist()]
        del quantized
        assert [holding(torch.tensor(pattern, dtype=torch.float64)) > 1 for pattern in patterns] == [True, True]
        hybrid.save_and_clear_private_info(tmp_path)
        assert [holding(torch.tensor(pattern, dtype=torch.float64)) for pattern in patterns] == [1, 1]  # the pattern
        assert layer.weight.is_meta
        assert layer.weight.shape == (7, 8)
        for mode in ("torch", "disable", "simulate", "execute"):
            with pytest.raises(RuntimeError, match=f"mode {mode} needs the weight of {name}, which was cleared here"):
                hybrid.set_fhe_mode(mode)
        with pytest.raises(RuntimeError, match="compile_model comes first, and once"):
            hybrid.save_and_clear_private_info(tmp_path / "again")

    def test_clearing_before_compiling_is_refused(self, tmp_path: Path) -> None:
        trained = training()
        hybrid = HybridFHEModel(trained, get_remote_names(trained))
        with pytest.raises(RuntimeError, match="compile_model comes first"):
            hybrid.save_and_clear_private_info(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_weight_shared_with_a_local_module_is_not_cleared(self, tmp_path: Path) -> None:
        tied = nn.Embedding(7, 8)
        trained = training()
        layer: Any = trained.inference_model[2]
        tied.weight = layer.weight
        trained.inference_model.add_module("tied", tied)
        hybrid = HybridFHEModel(trained, [name for name in get_remote_names(trained) if ".2." in name])
        trained.inference_model.forward = lambda x: nn.Sequential.forward(trained.inference_model[:5], x)  # type: ignore[method-assign]
        hybrid.compile_model((X, LABELS))
        with pytest.raises(RuntimeError, match="tied needs the weight that it shares with a remote module"):
            hybrid.save_and_clear_private_info(tmp_path)
        assert not list(tmp_path.iterdir())
        assert not layer.weight.is_meta

    def test_a_weight_whose_backward_product_runs_locally_is_not_cleared(self, tmp_path: Path) -> None:
        trained = training()
        hybrid = HybridFHEModel(trained, [name for name in get_remote_names(trained) if "forward" in name])
        hybrid.compile_model((X, LABELS))
        with pytest.raises(RuntimeError, match=r"backward_module needs the weight that it shares"):
            hybrid.save_and_clear_private_info(tmp_path)

    def test_the_weight_of_a_dora_layer_is_not_cleared(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="is a DoRA layer, which needs its weight here"):
            split(training(dora=True)).save_and_clear_private_info(tmp_path)

    def test_an_error_names_the_holder_of_a_weight(self, tmp_path: Path) -> None:
        hybrid = split()
        optimiser = [dict(enumerate(hybrid.model.parameters()))]
        with pytest.raises(RuntimeError, match=r"tensors with their values remain, held by .*dict"):
            hybrid.save_and_clear_private_info(tmp_path)
        assert optimiser

    def test_a_merged_adapter_is_refused(self) -> None:
        trained = training()
        layer: Any = trained.inference_model[0]
        layer.merge()
        hybrid = HybridFHEModel(trained, get_remote_names(trained))
        with pytest.raises(RuntimeError, match=r"inference_model\.0 is merged: its adapter would go to the server"):
            hybrid.compile_model((X, LABELS))


class TestClientFiles:
    def test_a_new_model_loads_the_clients_part(self, tmp_path: Path) -> None:
        hybrid = split()
        expected = {name: module.quantized.to_arrays() for name, module in hybrid.remote_modules.items()}  # type: ignore[union-attr]
        hybrid.save_and_clear_private_info(tmp_path)
        trained = training()
        other = HybridFHEModel(trained, get_remote_names(trained), "http://127.0.0.1:9")
        other.load_client(tmp_path)
        for name, module in other.remote_modules.items():
            assert module.quantized is not None
            assert module.quantized.weight is None
            for key, array in module.quantized.to_arrays().items():
                assert np.array_equal(array, expected[name][key]), (name, key)
        with pytest.raises(RuntimeError, match="was cleared here"):
            other.set_fhe_mode("disable")

    def test_parts_for_other_modules_and_damaged_parts_are_refused(self, tmp_path: Path) -> None:
        split().save_and_clear_private_info(tmp_path)
        trained = training()
        names = get_remote_names(trained)
        fewer = HybridFHEModel(trained, names[:2])
        with pytest.raises(ValueError, match=r"and the model differ in .*expected the same remote modules"):
            fewer.load_client(tmp_path)
        trained = training()
        other = HybridFHEModel(trained, names)
        part = tmp_path / "client" / "model" / "0.npz"
        with np.load(part) as held:
            arrays = dict(held)
        np.savez(part, **(arrays | {"weight_sum": arrays["weight_sum"][:-1]}))
        with pytest.raises(ValueError, match=r"the part of .* is damaged: weight_sum is \[6\]: expected \[7\]"):
            other.load_client(tmp_path)
        np.savez(part, **(arrays | {"shape": arrays["shape"][[1, 0, 2]]}))
        with pytest.raises(ValueError, match="is damaged"):
            other.load_client(tmp_path)
        assert other.remote_modules[names[0]].private_module is not None


def noisy(**options: Any) -> HybridFHEModel:
    """A split model with parameters whose noise changes the results."""
    torch.manual_seed(0)
    hybrid = HybridFHEModel(nn.Sequential(nn.Linear(6, 8)), ["0"], backend="fast", **options)
    hybrid.compile_model(X)
    return hybrid


class TestNoiseOfSimulation:
    def test_each_model_draws_its_own_noise(self) -> None:
        one = noisy()
        other = HybridFHEModel(nn.Sequential(nn.Linear(6, 8)), ["0"], backend="fast")
        other.model.load_state_dict(one.model.state_dict())
        other.compile_model(X)
        assert torch.equal(one(X, "disable"), other(X, "disable"))
        assert not torch.equal(one(X, "simulate"), other(X, "simulate"))

    def test_the_default_noise_seed_comes_from_torch(self) -> None:
        assert torch.equal(noisy()(X, "simulate"), noisy()(X, "simulate"))

    def test_a_noise_seed_fixes_the_noise_whatever_torch_draws(self) -> None:
        one, other = noisy(noise_seed=3), noisy(noise_seed=3)
        for _ in range(3):
            expected = one(X, "simulate")
            torch.randn(5)
            assert torch.equal(other(X, "simulate"), expected)
        assert not torch.equal(one(X, "simulate"), expected)

    def test_neighbouring_seeds_share_no_noise(self) -> None:
        models = [noisy(noise_seed=seed) for seed in range(4)]
        drawn = [hybrid(X, "simulate") for _ in range(4) for hybrid in models]
        assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])

    @pytest.mark.parametrize("seed", [-1, 1.5, True, "3"])
    def test_an_invalid_noise_seed_is_refused(self, seed: Any) -> None:
        with pytest.raises(ValueError, match=rf"noise_seed = {seed!r}: expected an int, at least 0, or None"):
            noisy(noise_seed=seed)


class TestChangedWeights:
    @pytest.mark.parametrize("shape", [(8, 6), (96, 70), (3, 4000)])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_a_change_through_data_is_noticed(self, shape: tuple[int, int], transposed: bool) -> None:
        layer = nn.Linear(*shape[::-1])
        if transposed:
            layer.weight = nn.Parameter(torch.randn(shape[::-1]).t())
        hybrid, x = HybridFHEModel(nn.Sequential(layer), ["0"]), torch.randn(2, shape[1])
        hybrid.compile_model(x)
        before = hybrid(x)
        layer.weight.data.add_(0.01)
        with pytest.raises(RuntimeError, match="the weight of 0 has changed since compile_model: compile again"):
            hybrid(x)
        hybrid.compile_model(x)
        assert not torch.equal(hybrid(x), before)
        layer.bias.data.zero_()
        with pytest.raises(RuntimeError, match="the bias of 0 has changed"):
            hybrid(x)

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copy_of_a_compiled_model_knows_whether_its_own_weight_has_changed(self, way: Any) -> None:
        hybrid, x = HybridFHEModel(nn.Sequential(nn.Linear(3, 2)), ["0"]), torch.randn(2, 3)
        with torch.no_grad():
            hybrid.model[0].weight.mul_(2)
        hybrid.compile_model(x)
        copied = way(hybrid)
        assert torch.equal(copied(x), hybrid(x))
        with torch.no_grad():
            copied.model[0].weight[0, 0].add_(1)
        with pytest.raises(RuntimeError, match="the weight of 0 has changed since compile_model"):
            copied(x)
        with torch.no_grad():
            hybrid.model[0].weight.mul_(1)
        with pytest.raises(RuntimeError, match="the weight of 0 has changed since compile_model"):
            way(hybrid)(x)

    def test_elements_of_a_strided_weight_are_compared_row_by_row(self) -> None:
        t = torch.arange(64 * 80).reshape(64, 80)[:, ::2]
        assert torch.equal(some_of(t), some_of(t.clone()))

    @pytest.mark.parametrize("module", [nn.Conv2d(2, 3, 1), nn.LayerNorm(3), nn.Embedding(2, 3)])
    def test_a_product_of_another_module_is_refused(self, module: nn.Module) -> None:
        expected = f"it is a {type(module).__name__}: expected a ForwardModuleLinear, a BackwardModuleLinear"
        with pytest.raises(ValueError, match=expected):
            product_of(module, "it")

    @pytest.mark.parametrize("shape", [(1025, 1), (2047, 1), (64, 64), (7, 1000), (5000, 3)])
    def test_the_compared_elements_are_spread_over_the_whole_weight(self, shape: tuple[int, int]) -> None:
        t = torch.arange(math.prod(shape)).reshape(shape)
        some = some_of(t)
        assert len(some) == 1024
        assert int(some[0]) < math.prod(shape) / 1024
        assert int(some.diff().min()) > 0
        assert int(some[-1]) >= math.prod(shape) * 1022 / 1024
        assert len(set((some % shape[1]).tolist())) >= min(shape[1], 3)


class TestCheckpoint:
    def test_the_state_dict_keeps_the_names_of_the_unsplit_model(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        HybridFHEModel(model, ["1"])
        assert list(model.state_dict()) == list(before)
        model.load_state_dict({name: value + 1 for name, value in before.items()})
        assert torch.equal(model.state_dict()["1.weight"], before["1.weight"] + 1)


def test_a_model_is_compiled_with_inputs_by_name_or_in_order() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor, times: Tensor) -> Any:
            return self.linear(x * times)

    x, times = torch.linspace(-1, 1, 6).reshape(2, 3), torch.tensor(2.0)
    torch.manual_seed(0)
    model, found = Pair(), []
    for inputs in ({"times": times, "x": x}, (x, times)):
        hybrid = HybridFHEModel(copy.deepcopy(model), ["linear"], noise_seed=0)
        hybrid.compile_model(inputs)
        found.append(hybrid(inputs))
    assert torch.equal(*found)
    assert torch.allclose(found[0], model(x, times), atol=0.1)


def test_noise_that_would_round_to_zero_is_not_drawn() -> None:
    trained = training()
    hybrid = optimized.HybridFHEModel(trained, get_remote_names(trained))
    hybrid.compile_model((X, LABELS))
    loss, _ = hybrid((X, LABELS), fhe="disable")
    simulated, _ = hybrid((X, LABELS), fhe="simulate")
    assert torch.equal(loss, simulated)
    assert hybrid._split.noise_drawn == 0


@pytest.mark.parametrize("shape", [(3, 0), (0, 4)])
def test_rows_without_elements_are_quantised(shape: tuple[int, int]) -> None:
    quantized = quantize_dynamic(torch.empty(shape), 8)
    assert quantized.values.shape == shape
    assert torch.equal(quantized.scale, torch.ones(shape[0], 1, dtype=torch.float64))
    assert not quantized.zero_point.any()
