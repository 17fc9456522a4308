"""`loraspec bench`: the layers it times, their operands, and the check that each layer is right at the timed size."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.bench import layers, session, table
from conformance.bench.admission import Admission
from conformance.bench.agreement import Agreement
from conformance.bench.cases import Size
from conformance.bench.layers import Contender, Operands, Problem
from conformance.bench.measured_case import FROZEN, MEASURED, UNRANKED, UNSUPPORTED
from conformance.bench.report import exit_code
from conformance.isolation.monkeypatches import PRISTINE
from conformance.judgement.outcomes import Violation
from tests.support.commands import TARGETS
from tests.support.timed_targets import SIZE, K, M, N, R, contender, measured, plain, too_large, twice


def test_every_layer_gets_the_same_weights_and_adapter() -> None:
    problem = Problem(SIZE, "float32", dropout=0.25, position="pre")
    operands = Operands(problem)
    seen: list[tuple[Any, ...]] = []

    class LinearLoRA(nn.Module):
        def __init__(self, linear: nn.Linear, *sizes: Any, **options: Any) -> None:
            super().__init__()
            seen.append((linear, sizes, options))
            self.lora_A, self.lora_B = nn.Linear(K, R, bias=False), nn.Linear(R, N, bias=False)

    thing = SimpleNamespace(LinearLoRA=LinearLoRA, lora_linear=plain, TritonLinearLoRA=LinearLoRA)
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setitem(sys.modules, "both_of_them", thing)
        (only,) = layers.contenders("both_of_them", "cpu")
        assert [c.subject for c in layers.contenders("both_of_them", "cuda")] == ["LinearLoRA", "TritonLinearLoRA"]
    layer: Any = only.built(problem, operands)
    (linear, sizes, options) = seen[-1]
    assert only.label == "both_of_them"
    assert (sizes, options) == ((R, 2 * R), {"dropout": 0.25, "dropout_position": "pre"})
    assert linear is not operands.frozen
    assert torch.equal(linear.weight, operands.frozen.weight)
    assert torch.equal(layer.lora_A.weight, operands.lora_A)
    assert torch.equal(layer.lora_B.weight, operands.lora_B)
    assert operands.lora_B.all()


def test_a_target_without_a_layer_is_timed_by_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(TARGETS), *sys.path])
    (only,) = layers.contenders("right", "cpu")
    assert only.label == "right lora_linear"


def test_a_targets_monkeypatch_is_active_only_while_the_target_is_timed() -> None:
    original, target = F.linear, contender().target
    with PRISTINE.suspended():
        F.linear = lambda *operands: original(*operands)  # noqa: PLW0108
    other = Contender(target, "lora_linear", dict(PRISTINE.replaced))
    PRISTINE.begin()
    assert F.linear is original
    with other.running():
        assert F.linear is not original
    assert F.linear is original
    with contender().running():
        assert F.linear is original


def test_the_others_are_measured_when_a_layer_raises_or_lacks_the_dtype() -> None:
    found = measured(
        contender(too_large, "large"), contender(plain, "narrow", dtypes=("bfloat16",)), contender(twice, "twice")
    )
    status = {row.label.split()[0]: row.status for row in found.layers}
    assert status == {"twice": MEASURED, "large": "raises MemoryError: 6 tokens are too many", "narrow": UNSUPPORTED}
    assert found.layers[0].label == "twice lora_linear"
    assert set(found.layers[0].costs.over) == {FROZEN}


def test_a_failing_target_is_timed_without_a_rank() -> None:
    fails = replace(contender(plain, "fails"), ranked=False)
    case = measured(contender(twice, "twice"), fails)
    status = {row.label.split()[0]: row.status for row in case.layers}
    assert status == {"twice": MEASURED, "fails": UNRANKED}
    frozen, one, last = table.rows(case, {"fails": "2 clauses"})
    assert (one[0], one[1]) == ("1", "twice lora_linear")
    assert (last[0], last[1]) == ("–", "fails lora_linear, fails 2 clauses")
    assert len(last) == len(one) == len(frozen) == len(table.headings(1))
    over = next(row.costs.over for row in case.layers if row.label.startswith("fails"))
    assert last[3] == f"{over[FROZEN].median:.2f}"


def test_a_failing_target_is_timed_only_with_unranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(TARGETS), *sys.path])
    judged = [Admission(name, name, None, "linear", 1, failing) for name, failing in
              (("right", {"LIN-CKPT": "no"}), ("unscaled", {"LIN-FWD": "off"}))]  # fmt: skip
    for unranked, expected in ((False, {"right": True}), (True, {"right": True, "unscaled": False})):
        wanted = session.Wanted(("right", "unscaled"), (SIZE,), ("float32",), unranked=unranked)
        assert {c.target.spec: c.ranked for c in session._contenders(judged, wanted)} == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("result", ["y", "dX", "dA", "dB"])
def test_a_layer_that_is_wrong_at_the_timed_size_is_not_ranked(result: str, dtype: str) -> None:
    class Off(torch.autograd.Function):
        """The layer with one result 10 % too large."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
            ctx.save_for_backward(x, W, A, B)
            ctx.scale = scale
            return damaged("y", F.linear(x, W, b) + F.linear(F.linear(x, A) * scale, B))

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            x, W, A, B = ctx.saved_tensors
            S, dS = x @ A.T * ctx.scale, g @ B * ctx.scale
            return damaged("dX", g @ W + dS @ A), None, None, damaged("dA", dS.T @ x), damaged("dB", g.T @ S), None

    def damaged(name: str, value: Tensor) -> Tensor:
        return value * 1.1 if name == wrong else value

    wrong = "none"
    right = measured(contender(Off.apply), dtype=dtype)
    assert right.layers[0].status == MEASURED
    wrong = result
    (row,) = measured(contender(Off.apply), dtype=dtype).layers
    assert row.status.startswith(f"wrong at this size, not ranked: {result}[")
    assert exit_code((), (replace(right, layers=(row,)),)) == 1


def test_the_first_and_the_last_token_are_compared() -> None:
    def late(x: Tensor, *rest: Any) -> Tensor:
        y = plain(x, *rest)
        return torch.cat([y[:-1], y[-1:] * 1.1])

    size = Size(100, 40, 24, 3)
    problem = Problem(size, "float32")
    agreement = Agreement(problem, Operands(problem))
    assert agreement.kept("m").tolist() == [0, 14, 28, 42, 57, 71, 85, 99]
    assert agreement.kept("n").tolist() == [0, 3, 7, 10, 13, 16, 20, 23]
    with pytest.raises(Violation, match=r"y\[7, \d+\]: got"):
        agreement.check(contender(late).built(problem, agreement.timed))


def test_the_dropout_position_is_one_that_all_targets_support() -> None:
    pre, either = contender(dropout_positions=("pre",)), contender()
    assert session._position([either, pre]) == "pre"
    assert session._position([either, either]) == "post"
    post = contender(name="later", dropout_positions=("post",))
    with pytest.raises(session.UsageError, match=r"no dropout position is common.*plain: pre, later: post"):
        session._position([pre, post])
    assert measured(either, dropout=0.5).layers[0].costs.saved_bytes > 4 * M * R  # in training, with a mask
