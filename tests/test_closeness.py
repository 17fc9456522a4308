"""`loraspec.assert_lora_close`: results that are already there, judged by the error budget of their operands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from loraspec import assert_lora_close

SCALE = 2.0


def operands(dtype: torch.dtype = torch.float32, adapter: torch.dtype | None = None, tokens: Any = (2, 5)) -> Any:
    """Operands of a layer from 64 to 48 features with rank 8."""
    torch.manual_seed(0)
    drawn = {
        "x": torch.randn(*tokens, 64).to(dtype),
        "weight": (torch.randn(48, 64) / 8).to(dtype),
        "bias": torch.randn(48).to(dtype),
        "lora_A": (torch.randn(8, 64) / 8).to(adapter or dtype),
        "lora_B": torch.randn(48, 8).to(adapter or dtype),
    }
    return drawn | {name: drawn[name].requires_grad_() for name in ("x", "lora_A", "lora_B", "bias")}


def output(o: dict[str, Tensor]) -> Tensor:
    """The layer's y in plain PyTorch."""
    update = linear(linear(o["x"].to(o["lora_A"].dtype), o["lora_A"]), o["lora_B"]) * SCALE
    return linear(o["x"], o["weight"], o["bias"]) + update.to(o["x"].dtype)


def results(o: dict[str, Tensor]) -> dict[str, Any]:
    """y, its gradients and the merged weight in plain PyTorch."""
    y = output(o)
    g = torch.randn_like(y)
    y.backward(g)
    merged = (o["weight"] + SCALE * o["lora_B"] @ o["lora_A"]).to(o["weight"].dtype)
    gradients = {"dx": o["x"].grad, "dA": o["lora_A"].grad, "dB": o["lora_B"].grad, "dbias": o["bias"].grad}
    return {"y": y, "g": g, **gradients, "merged": merged}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter", [None, torch.float32])
@pytest.mark.parametrize("tokens", [(), (1,), (3, 1, 7)])
def test_right_results_are_close(dtype: torch.dtype, adapter: torch.dtype | None, tokens: tuple[int, ...]) -> None:
    o = operands(dtype, adapter, tokens)
    assert 0 < assert_lora_close(**results(o), **o, scale=SCALE) <= 1


def test_the_errors_of_operands_that_repeat_themselves_add_up() -> None:
    torch.manual_seed(0)
    x, lora_A = torch.rand(1, 16).repeat(2, 1), torch.rand(8, 16)
    x[0, 0], x[1, 0] = 1, 0
    lora_A[1:, 0] = 0.01  # so little that x Aᵀ is rounded to other values in every other row, and dB nearly cancels
    drawn = {"x": x.repeat(1024, 1), "lora_A": lora_A, "lora_B": torch.rand(48, 8)}
    o = {name: value.bfloat16() for name, value in drawn.items()}
    g = torch.tensor([[1.0], [-1.0]], dtype=torch.bfloat16).repeat(1024, 48)
    assert_lora_close(dB=g.T @ linear(o["x"], o["lora_A"]), g=g, **o, scale=1.0)


def changed(name: str, change: Any) -> Any:
    """Right results of which one is changed."""
    o = operands()
    found = results(o)
    found[name] = change(found[name].detach().clone())
    return lambda: assert_lora_close(**found, **o, scale=SCALE)


def off_by_little(result: Tensor) -> Tensor:
    result.view(-1)[391] += 1e-3
    return result


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("y", off_by_little, r"y\[1, 3, 7\]: got .*, want .* error ÷ budget .*\npattern  1 of 480 elements wrong"),
        ("y", torch.Tensor.double, "y has dtype torch.float64: expected torch.float32"),
        ("y", lambda y: y[0], r"y has shape \[5, 48\]: expected \[2, 5, 48\]"),
        ("y", lambda y: y * float("nan"), "480 of 480 elements wrong; all; NaN"),
        ("merged", off_by_little, r"the merged weight\[6, 7\]: got .*\npattern  1 of 3072 elements wrong"),
        ("dx", lambda dx: dx / 2, r"dX is not g W \+ s·\(g B\) A .*\nworst .*\npattern  .*constant ratio 0\.5"),
        ("dA", torch.zeros_like, r"dA is not s·\(g B\)ᵀ x .*\nworst .*\npattern  .*zeros"),
        ("dB", lambda dB: -dB, r"dB is not s·gᵀ \(x Aᵀ\) .*\nworst .*\npattern  .*constant ratio -1"),
        ("dbias", lambda db: db / 2, "dbias is not Σ g .*\nworst "),
        (
            "merged",
            lambda m: 2 * m,
            r"the merged weight is not W \+ s·B A .*\nworst .*\n.*ratio 2",
        ),
    ],
)
def test_a_wrong_result_is_told_with_element_ratio_and_pattern(name: str, change: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        changed(name, change)()


def test_every_wrong_result_is_told() -> None:
    o = operands()
    found = results(o)
    with pytest.raises(AssertionError, match=r"(?s)^y is not .*\ndA is not .*\ndB is not "):
        assert_lora_close(found["y"] * 2, g=found["g"], dA=-found["dA"], dB=-found["dB"], **o, scale=SCALE)


def test_without_a_weight_the_update_alone_is_judged() -> None:
    o = operands()
    adapters = {"lora_A": o["lora_A"], "lora_B": o["lora_B"], "scale": SCALE}
    update = SCALE * linear(linear(o["x"], o["lora_A"]), o["lora_B"])
    assert_lora_close(update, x=o["x"], merged=SCALE * o["lora_B"] @ o["lora_A"], **adapters)
    assert_lora_close(merged=SCALE * o["lora_B"] @ o["lora_A"], **adapters)
    with pytest.raises(AssertionError, match=r"^y is not s·\(x Aᵀ\) Bᵀ within"):
        assert_lora_close(output(o), x=o["x"], **adapters)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": torch.zeros(0, 64)}, r"x is \[0, 64\], without an element: there is nothing to judge"),
        ({"x": torch.full((5, 64), float("inf"))}, "320 of 320 elements of x are not finite"),
        (
            {"lora_A": torch.ones(8, 96)},
            r"x is \[2, 5, 64\], but lora_A, \[8, 96\], takes 96 .*: expected \[\*, 96\]",
        ),
        ({"lora_B": torch.ones(48, 9)}, r"lora_B is \[48, 9\], but lora_A, \[8, 64\], has rank 8: expected \[48, 8\]"),
        ({"weight": torch.ones(64, 48)}, r"weight is \[64, 48\], but lora_A and lora_B .*: expected \[48, 64\]"),
        ({"bias": torch.ones(64)}, r"bias is \[64\], but lora_B, \[48, 8\], gives 48 features: expected \[48\]"),
        ({"lora_A": torch.ones(64)}, r"lora_A is \[64\]: expected \[r, K\]"),
        (
            {"g": torch.ones(5, 48), "dx": torch.ones(1)},
            r"g is \[5, 48\], but it is the gradient of y: expected \[2, 5, ",
        ),
        ({"x": torch.ones(2, 64).double()}, "x is torch.float64, weight is torch.float32.*: expected one dtype"),
        (
            {"lora_A": torch.ones(8, 64).int()},
            "lora_A is torch.int32: expected one of float64, float32, ",
        ),
        ({"scale": float("nan")}, "scale is nan: expected a finite number"),
        ({"g": torch.ones(2, 5, 48)}, "g is given, but no gradient to judge: expected dx, dA, dB or dbias"),
        ({"dA": torch.ones(8, 64)}, "g, the gradient of y, is missing: dA depends on it"),
        ({"x": None}, "x is missing: y depends on it"),
        ({"weight": None}, "bias is given without weight, which means the update alone: expected both"),
        ({"y": None}, "there is nothing to judge: expected y, dx, dA, dB, dbias or merged"),
    ],
)
def test_operands_that_do_not_chain_are_refused(changes: dict[str, Any], says: str) -> None:
    o = operands()
    with pytest.raises(ValueError, match=says):
        assert_lora_close(**{"y": output(o), **o, "scale": SCALE, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora_B": torch.zeros(48, 8)}, "the result without its adapter term would pass as y, .*lora_B is zero every"),
        ({"weight": torch.zeros(48, 64)}, "the result without its base term would pass as y, .*weight is zero every"),
        ({"lora_B": torch.full((48, 8), 1e-9)}, "decide nothing .the terms' magnitudes differ too much"),
    ],
)
def test_operands_that_decide_nothing_are_refused_if_the_result_is_right(changes: dict[str, Any], says: str) -> None:
    o = operands() | changes
    with pytest.raises(ValueError, match=says):
        assert_lora_close(output(o), **o, scale=SCALE)
    with pytest.raises(AssertionError, match="y is not"):
        assert_lora_close(output(o) + 1, **o, scale=SCALE)


def test_a_scale_of_zero_decides_nothing() -> None:
    o = operands()
    with pytest.raises(ValueError, match=r"would pass as y, so these operands decide nothing \(scale is 0\): random"):
        assert_lora_close(linear(o["x"], o["weight"], o["bias"]), **o, scale=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"x": [1.0]}, "x is of type list: expected a torch.Tensor"), ({"scale": "2"}, "scale is '2': expected a number")],
)
def test_what_is_no_tensor_or_number_is_a_type_error(changes: dict[str, Any], says: str) -> None:
    o = operands()
    with pytest.raises(TypeError, match=says):
        assert_lora_close(**{"y": output(o), **o, "scale": SCALE, **changes})
