"""Layers whose weight is packed in a way that nobody can dequantise: refused, or named in a warning."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conformance.clauses.model.apply_to_model import MODELS, ModelCase
from conformance.clauses.model.failed_adaptation import ERRORS, model_state
from conformance.clauses.model.small_models import Toy
from conformance.clauses.model.target_calls import make_config, warned
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.expected_errors import quiet, refuses, unless_it_raises
from conformance.target.subject import Subject


class CodedLinear(nn.Linear):
    """An nn.Linear with its own forward, which alone knows what the codes in its weight stand for."""

    def forward(self, x: Tensor) -> Tensor:
        codes = self.weight.view(self.out_features, -1).to(x.dtype)
        return x @ codes.repeat(1, self.in_features // codes.shape[1]).t()


class PackedModule(nn.Module):
    """A linear layer with codes for its weight, which is no nn.Linear, as HQQLinear is none."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.W_q = nn.Parameter(torch.ones(out_features // 2, in_features, dtype=torch.uint8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W_q.to(x.dtype).repeat(2, 1).t()


def _coded(dtype: torch.dtype, shape: Callable[[int, int], tuple[int, ...]], kind: type[nn.Linear]) -> Any:
    """A layer for the head of a toy whose weight has this dtype and shape."""

    def made(head: nn.Linear) -> nn.Linear:
        layer = kind(head.in_features, head.out_features, bias=False, device=head.weight.device)
        codes = torch.ones(shape(head.out_features, head.in_features), device=head.weight.device)
        layer.weight = nn.Parameter(codes.to(dtype), requires_grad=False)
        return layer.train(head.training)

    return made


def _matrix(n: int, k: int) -> tuple[int, ...]:
    return n, k


def _bytes(n: int, k: int) -> tuple[int, ...]:
    return n * k // 2, 1


def _half(n: int, k: int) -> tuple[int, ...]:
    return n, k // 2


PACKED: dict[str, Callable[[nn.Linear], nn.Linear]] = {
    "uint8 bytes": _coded(torch.uint8, _bytes, nn.Linear),
    "float8": _coded(torch.float8_e4m3fn, _matrix, nn.Linear),
    "int8": _coded(torch.int8, _matrix, nn.Linear),
    "float32 [N, K/2]": _coded(torch.float32, _half, nn.Linear),
    "own forward, uint8": _coded(torch.uint8, _bytes, CodedLinear),
    "own forward, float8": _coded(torch.float8_e5m2, _matrix, CodedLinear),
}
CODED = MODELS.narrowed(targets=tuple(PACKED))


def _packed_toy(subject: Subject, case: ModelCase) -> Toy:
    """A toy whose head, the last of its layers, is packed."""
    model = case.toy(subject)
    model.head = PACKED[case.targets](model.head)
    return model


@clause(
    "MOD-PACKED",
    sentence="""apply_lora_to_linear_modules refuses a chosen layer whose weight is an integer or float8, or not [N, K],
    if nobody can dequantise it, before anything in the model changes. The error names the layer's path and its class,
    and the dtype and shape of the weight.""",
    why="""A layer of a quantisation library that is not known here may keep anything in its weight; with an adapter in
    the dtype or shape of the codes it trains wrong numbers, and a model that is adapted up to this layer cannot be
    saved or adapted again.""",
    cases=CODED,
    level="SHOULD",  # as MOD-FAILED-INTACT
    dtypes=("float32",),
    weight=0.5,
)
def test_packed_layer(subject: Subject, case: ModelCase) -> None:
    model = _packed_toy(subject, case)
    weight, kind = model.head.weight, type(model.head).__name__
    dtype, shape = str(weight.dtype).removeprefix("torch."), str(list(weight.shape))
    config = make_config(subject, match_all_linear=True, dim=case.dim, use_triton=case.triton)
    before, what = model_state(model), f"apply_lora_to_linear_modules to a model whose head is packed ({case.targets})"
    said = refuses(what, lambda: subject.thing(model, config), dtype, types=ERRORS)
    after = model_state(model)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    require(not changed, f"{what} was refused and changed {', '.join(changed[:4])} of {len(changed)}")
    for word in ("head", kind):
        require(re.search(rf"\b{word}\b", said) is not None, f"{what}: the error {said!r} does not name {word}")
    sizes = r"\D+".join(str(size) for size in weight.shape)
    require(re.search(rf"\b{sizes}\b", said) is not None, f"{what}: the error {said!r} does not name the shape {shape}")


@clause(
    "MOD-PACKED-NUMBERS",
    sentence="""A layer whose weight is packed, and which is an nn.Linear with torch's own forward, gets no adapter, or
    its first call raises: no output is computed from codes.""",
    why="Codes that are cast to floats and multiplied give numbers of the right shape, and a loss that goes down.",
    cases=CODED.narrowed(targets=tuple(name for name in PACKED if "own" not in name)),
    dtypes=("float32",),
    weight=0.5,
)
def test_no_numbers_from_codes(subject: Subject, case: ModelCase) -> None:
    layer = _packed_toy(subject, case).head
    x = torch.ones(2, layer.in_features, device=subject.device)

    def output() -> Any:
        with quiet():
            options = {"dim": case.dim, "lora_dtype": "float32"} if case.seed % 2 else {"dim": case.dim}
            return subject.target.patch_linear_module(layer, use_triton=case.triton, **options)(x)

    y = unless_it_raises(output)
    what = f"an nn.Linear whose weight is {layer.weight.dtype} {list(layer.weight.shape)}"
    require(y is None, f"{what} was adapted and computes an output from its codes: expected an error")


@clause(
    "MOD-PACKED-WARNED",
    sentence="""A chosen module that holds the packed weight of a linear layer and is no nn.Linear is named in a warning
    and left as it is; the other chosen layers get their adapters.""",
    why="Libraries such as HQQ have a class of their own; a model of such layers otherwise trains nothing, silently.",
    cases=MODELS.narrowed(targets=("fc1,fc2", "*.fc2", "")),
    level="SHOULD",
    dtypes=("float32",),
    feature="linear_only",
    weight=0.5,
)
def test_packed_module(subject: Subject, case: ModelCase) -> None:
    model: Any = case.toy(subject)
    old = model.blocks[1].fc2
    model.blocks[1].fc2 = packed = PackedModule(old.in_features, old.out_features).to(subject.device)
    _, said = warned(subject, model, **case.options)
    require("blocks.1.fc2" in said, f"no warning names blocks.1.fc2, which is packed: {said or 'none'!r}")
    now = model.blocks[1].fc2
    require(now is packed and not hasattr(now, "lora_A"), "blocks.1.fc2, which is packed, has been changed")
    adapter_of(model.blocks[0].fc2, "lora_A")


@clause(
    "MOD-PACKED-CUSTOM",
    sentence="""replace_layers_with_custom refuses a model with a linear layer whose weight is packed, naming its path,
    dtype and shape, before any layer is replaced.""",
    why="The products of a CustomLinear are those of its weight as it is: the server would multiply with codes.",
    cases=CODED,
    level="SHOULD",
    dtypes=("float32",),
    needs=("LoraTraining", "LoraTraining.replace_layers_with_custom"),
    weight=0.34,
)
def test_packed_layer_replaced(subject: Subject, case: ModelCase) -> None:
    model = _packed_toy(subject, case)
    weight, before = model.head.weight, model_state(model)
    refuses(
        f"replace_layers_with_custom of a model whose head is packed ({case.targets})",
        lambda: subject.target.LoraTraining.replace_layers_with_custom(model),
        "head",
        str(weight.dtype).removeprefix("torch."),
        str(list(weight.shape)),
        types=ERRORS,
    )
    after = model_state(model)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    require(not changed, f"replace_layers_with_custom was refused and changed {', '.join(changed[:4])}")


@clause(
    "MOD-PACKED-SPLIT",
    sentence="HybridFHEModel refuses a layer whose weight is packed, naming its path, dtype and shape.",
    why="Its quantisation and its encrypted product would be those of the codes.",
    cases=CODED,
    level="SHOULD",
    dtypes=("float32",),
    needs=("HybridFHEModel",),
    weight=0.34,
)
def test_packed_layer_split(subject: Subject, case: ModelCase) -> None:
    model = _packed_toy(subject, case)
    weight, kind = model.head.weight, type(model.head)
    refuses(
        f"HybridFHEModel of a head that is packed ({case.targets})",
        lambda: subject.target.HybridFHEModel(model, ["head"]),
        "head",
        str(weight.dtype).removeprefix("torch."),
        str(list(weight.shape)),
        types=ERRORS,
    )
    require(type(model.head) is kind, f"the refused head has become a {type(model.head).__name__}")
