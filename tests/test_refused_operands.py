"""Operands of the functions that are refused, and what the error says of them: what came, and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import reference
from reference.encrypted.noise import simulate
from reference.files.tensor_file import write_json
from reference.service.admission import client_of

ONES = torch.ones
X, A, B = ONES(5, 64), ONES(2, 64), ONES(32, 2)


class Own(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def packed(*changed: Any) -> Any:
    weight = reference.pack_weight(ONES(32, 64), "nf4")
    x, bias, lora_A, lora_B = [*changed, *(X, None, A, B)[len(changed) :]]
    return reference.lora_packed_linear(x, weight, bias, lora_A, lora_B, 1.0)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: packed(X[:, :63], None, A[:, :63]),
        "weight is [32, 64] but x has 63 features: it must be [out_features, 63",
    ),
    (
        lambda: packed(X, None, A, B[1:]),
        "lora_B is [31, 2] but weight is [32, 64]: their first dimensions must be equal",
    ),
    (lambda: packed(X, ONES(31)), "bias is [31] but weight is [32, 64]: it must be [32]"),
    (lambda: packed(X, ONES(32).int()), "bias is torch.int32: expected a floating point dtype"),
    (
        lambda: reference.LinearLoRA(Own(3, 4), 2),
        "Own has its own forward, which LinearLoRA would not call: use patch_",
    ),
    (
        lambda: reference.LinearLoRA(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), 2),
        "computes its weight, which LinearLoRA would not call: use patch_linear_module",
    ),
    (lambda: reference.LinearLoRA(nn.Linear(3, 4), 2, lora_A_init_method="zeros"), "= 'zeros': expected one of"),
    (
        lambda: simulate(ONES(2, 3).long(), ONES(4).double(), 8),
        "raw is [2, 3] and std [4]: expected [M, N] and [N]",
    ),
    (lambda: write_json({"rate": float("nan")}), "Out of range float values are not JSON compliant"),
]


@pytest.mark.parametrize(("call", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_an_error_says_what_came_and_what_was_expected(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        call()
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1:2:3:4%eth0", "2001:db8::/64"),
        ("2001:db8:0:1::9", "2001:db8:0:1::/64"),
        ("a socket", "a socket"),
        (None, "an unknown client"),
    ],
)
def test_addresses_of_one_client_are_one(address: str | None, client: str) -> None:
    assert client_of(address) == client
