"""What is refused, and what the error says of it: what came, and what was expected."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import torch
from torch import nn

import optimized
import reference
from reference.experts_module import check_experts, check_slots
from reference.files.plain_values import flatten, unflatten
from reference.files.tensor_names import by_module
from reference.grouped_linear import check_offsets
from reference.quantization import quantize_dynamic
from reference.service.client import RemoteClient

ONES = torch.ones


class Own(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def merge(layer: nn.Module) -> None:
    reference.patch_linear_module(layer, 2).merge()


def split(mode: str) -> Any:
    """Set a mode of a model that is not compiled; `calibrate` after it is compiled, `remote` without a server."""
    model = reference.HybridFHEModel(nn.Sequential(nn.Linear(3, 2)), ["0"])
    if mode in ("calibrate", "remote"):
        model.compile_model(ONES(1, 3))
    model.set_fhe_mode(mode)


def seeded(seed: Any) -> reference.HybridFHEModel:
    return reference.HybridFHEModel(nn.Sequential(nn.Linear(3, 2)), ["0"], noise_seed=seed)


def apply(*operands: Any) -> Any:
    return optimized.LoRATritonFunction.apply(*operands, None)


def remote() -> RemoteClient:
    return RemoteClient("http://127.0.0.1:1", transport=httpx.MockTransport(lambda _: httpx.Response(200)))


def adapted() -> nn.Module:
    return reference.patch_linear_module(nn.Linear(3, 4), 2)


X, A, B = ONES(5, 3), ONES(2, 3), ONES(4, 2)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # layers
    (
        lambda: reference.patch_linear_module(nn.Conv2d(1, 1, 1), 2),
        ValueError,
        "got a Conv2d: expected an nn.Linear or",
    ),
    (
        lambda: reference.patch_linear_module(adapted(), 2),
        ValueError,
        "already has an adapter: expected an nn.Linear w",
    ),
    (
        lambda: reference.patch_linear_module(Own(3, 4), 2, use_dora=True),
        ValueError,
        "Own has its own forward: DoRA ne",
    ),
    (lambda: merge(Own(3, 4)), ValueError, "Own has its own forward, in which a merged weight may give another layer"),
    (
        lambda: merge(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))),
        ValueError,
        "Linear computes its weight from other parameters, so that a merged weight would be lost: expected a Parameter",
    ),
    (
        lambda: merge(reference.packed_linear(nn.Linear(64, 32), "nf4")),
        ValueError,
        "PackedLinear is packed as nf4, so that merging would round the update away: expected a floating point weight",
    ),
    (
        lambda: reference.lora_linear(ONES(()), None, None, A, B, 1.0),
        ValueError,
        "x is a scalar: expected [*, features]",
    ),
    # the adapter's function
    (lambda: apply(ONES(()), A, B, 1.0), ValueError, "x has no dimensions: it must be [*, K]"),
    (lambda: apply(X, A[0], B, 1.0), ValueError, "lora_A is [3]: it must have two dimensions"),
    (lambda: apply(X, A, B[0], 1.0), ValueError, "lora_B is [2]: it must have two dimensions"),
    (
        lambda: apply(X, A.to("meta"), B, 1.0),
        ValueError,
        "lora_A is on meta but x is on cpu: they must be on one device",
    ),
    (
        lambda: apply(X, A, B.to("meta"), 1.0),
        ValueError,
        "lora_B is on meta but x is on cpu: they must be on one device",
    ),
    (
        lambda: apply(X, A[:, :2], B, 1.0),
        ValueError,
        "lora_A is [2, 2] but x has 3 features: its second dimension must b",
    ),
    (
        lambda: apply(X, A, B[:, :1], 1.0),
        ValueError,
        "lora_B is [4, 1] but lora_A is [2, 3]: its second dimension must",
    ),
    (
        lambda: apply(X, A, B.double(), 1.0),
        ValueError,
        "lora_B is float64 but lora_A is float32: they must have one dty",
    ),
    (lambda: apply(X + 1j, A, B, 1.0), NotImplementedError, "x is complex64: the operands must be real"),
    (lambda: apply(X, A, B, ONES((), requires_grad=True)), TypeError, "scale requires a gradient: it must be a number"),
    # configs
    (lambda: reference.PeftConfig.from_dict([1]), ValueError, "from_dict got a list, [1]: expected a dict of options"),
    (
        lambda: reference.PeftConfig(target_modules=3),
        ValueError,
        "target_modules = 3: expected a list of strings, a str",
    ),
    (
        lambda: reference.PeftConfig(rank_pattern=[1]),
        ValueError,
        "rank_pattern = [1]: expected a dict of patterns and n",
    ),
    (
        lambda: reference.PeftConfig(rank_pattern={1: 2}),
        ValueError,
        "rank_pattern has the pattern 1: expected a string",
    ),
    (
        lambda: reference.ModuleMatcher(target_modules=["a"], match_all_linear=True),
        ValueError,
        "target_modules = ['a'] and match_all_linear = True are mutually exclusive: expected one of them",
    ),
    # experts
    (lambda: check_experts("experts"), ValueError, "got a str: expected a module of experts"),
    (
        lambda: check_slots("Experts", ONES(5, 3), ONES(4, 2).long(), ONES(4, 2)),
        ValueError,
        "Experts got indices [4, 2] of torch.int64 for tokens [5, 3]: expected integers [5, 'k']",
    ),
    (
        lambda: check_slots("Experts", ONES(5, 3), ONES(5, 2), ONES(5, 2)),
        ValueError,
        "Experts got indices [5, 2] of torch.float32 for tokens [5, 3]: expected integers [5, 'k']",
    ),
    (
        lambda: check_slots("Experts", ONES(5, 3), ONES(5, 2).long(), ONES(5, 1)),
        ValueError,
        "Experts got weights [5, 1] for indices [5, 2]: expected the same",
    ),
    (
        lambda: check_offsets(X[0], ONES(2).int(), 2),
        ValueError,
        "x is [3]: expected [rows, features], sorted by expert",
    ),
    # packed and quantised weights
    (
        lambda: reference.PackedWeight("gptq", (8, 8), {}, {"version": 3, "group_size": 8}),
        ValueError,
        "version is 3: expected 1 or 2",
    ),
    (lambda: reference.PackedWeight("hqq", (8, 64), {}, {"axis": 2}), ValueError, "axis is 2: expected 0 or 1"),
    (lambda: quantize_dynamic(ONES(3), 8), ValueError, "x is [3]: expected two dimensions"),
    (
        lambda: quantize_dynamic(torch.tensor([[-1.5e308, 1.5e308]], dtype=torch.float64), 8),
        ValueError,
        "the range of the values is beyond float64: expected max - min to be finite",
    ),
    # training
    (lambda: training()((ONES(1),)), ValueError, "inputs is a tuple: expected (x, labels), or a dict with labels"),
    (lambda: training()({"x": 1}), ValueError, "inputs is a dict: expected (x, labels), or a dict with labels"),
    (
        lambda: training().update_training_parameters(training_args={"gradient_accumulation_steps": 1.5}),
        ValueError,
        "gradient_accumulation_steps = 1.5: expected an int of at least 1",
    ),
    (
        lambda: training().update_training_parameters(training_args={"gradient_accumulation_steps": 0}),
        ValueError,
        "gradient_accumulation_steps = 0: expected an int of at least 1",
    ),
    (
        lambda: training().update_training_parameters(training_args={"max_grad_norm": -1.0}),
        ValueError,
        "max_grad_norm = -1.0: expected a number, not negative, or None",
    ),
    # split models and their server
    (lambda: seeded(-1), ValueError, "noise_seed = -1: expected an int, at least 0, or None"),
    (lambda: seeded(True), ValueError, "noise_seed = True: expected an int, at least 0, or None"),
    (lambda: split("calibrate"), RuntimeError, "mode calibrate comes before compile_model: this model is compiled"),
    (lambda: split("execute"), RuntimeError, "mode execute comes after compile_model: 0 is not compiled"),
    (lambda: split("remote"), RuntimeError, "mode remote needs a server_remote_address: got None"),
    (
        lambda: reference.HybridFHEModel(nn.Linear(3, 2), [""]),
        ValueError,
        "the model itself cannot run remotely: expect",
    ),
    (
        lambda: reference.HybridFHEModel(reference.HybridFHEModel(nn.Sequential(nn.Linear(3, 2)), ["0"]).model, ["0"]),
        ValueError,
        "0 runs remotely already: expected a model that was not split",
    ),
    (
        lambda: reference.HybridFHEModel(nn.Sequential(adapted()), ["0.lora_A"]),
        ValueError,
        "0.lora_A belongs to an adapter, which stays with the client: see get_remote_names",
    ),
    (
        lambda: copy.copy(remote()),
        TypeError,
        "a RemoteClient with a transport of its own cannot be copied",
    ),
    (
        lambda: pickle.dumps(remote()),
        TypeError,
        "a RemoteClient with a transport of its own cannot be cop",
    ),
    # values of files
    (
        lambda: flatten({1, 2}, "it", {}),
        ValueError,
        "it is a set, {1, 2}: expected numbers, strings, tensors, lists and",
    ),
    (lambda: unflatten({"other": 1}, {}), ValueError, "{'other': 1} is not a value of a checkpoint"),
    (
        lambda: by_module({}, {}, "it.safetensors"),
        ValueError,
        "it.safetensors holds no tensor of an adapter: expected ba",
    ),
]


def training() -> reference.LoraTraining:
    return reference.LoraTraining(nn.Sequential(adapted()))


@pytest.mark.parametrize(("call", "kind", "says"), REFUSED, ids=[says for _, _, says in REFUSED])
def test_an_error_says_what_came_and_what_was_expected(
    call: Callable[[], Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as refused:
        call()
    assert says in str(refused.value)
