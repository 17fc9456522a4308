"""`loraspec bench --adapters`: batches whose rows use different adapters are checked, then timed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import optimized
import reference
from conformance.bench import layers, session
from conformance.bench.batched_layers import BatchedAgreement, BatchedOperands
from conformance.bench.layers import Contender, Problem
from conformance.bench.measured_case import FROZEN, MEASURED
from conformance.cli import main
from conformance.errors import UsageError
from conformance.judgement.outcomes import Violation
from conformance.target.target import Target
from tests.support.timed_targets import SIZE, K, M, N, R, measured

ADAPTERS = 3


def batches(function: Any, name: str) -> Contender:
    """Wrap a function as a target with only `lora_batched_linear`."""
    return Contender(Target.of(SimpleNamespace(lora_batched_linear=function), name), "lora_batched_linear")


def test_batches_of_two_targets_are_timed() -> None:
    timed = [batches(package.lora_batched_linear, package.__name__) for package in (optimized, reference)]
    case = measured(*timed, adapters=ADAPTERS)
    assert [row.status for row in case.layers] == [MEASURED] * 2
    assert case.case == "6x40x24 r3 float32, 3 adapters"
    assert all(row.costs and row.costs.over[FROZEN].median > 0 for row in case.layers)
    adapter = R * (K + N)
    forward, backward = case.least_work.adapted
    assert forward.flops == 2 * M * K * N + 2 * M * adapter
    assert forward.bytes == 4 * (M * K + N * K + N + M * N + ADAPTERS * adapter)
    assert backward.bytes == 4 * (M * N + N * K + M * K + M * K + 2 * ADAPTERS * adapter)


def wrong_rows(x: Any, index: Any, *operands: Any) -> Any:
    return reference.lora_batched_linear(x, index.clamp(min=0), *operands)


def wrong_gradient(x: Any, index: Any, weight: Any, bias: Any, lora_A: Any, *rest: Any) -> Any:
    return reference.lora_batched_linear(x, index, weight, bias, lora_A.detach() + 0 * lora_A, *rest)


@pytest.mark.parametrize(("function", "says"), [(wrong_rows, r"y\[\d, \d+\]"), (wrong_gradient, r"dA\[\d, \d, \d+\]")])
def test_a_wrong_batch_is_not_timed(function: Any, says: str) -> None:
    problem = Problem(SIZE, "float32", adapters=ADAPTERS)
    operands = BatchedOperands(problem)
    with pytest.raises(Violation, match=says):
        BatchedAgreement(problem, operands).check(operands.layer(function))


def test_every_adapter_and_none_is_in_the_rows() -> None:
    operands = BatchedOperands(Problem(SIZE, "float32", adapters=ADAPTERS))
    assert operands.index.unique().tolist() == [-1, 0, 1, 2]
    assert not torch.equal(operands.index, operands.index.sort().values)


def test_the_option_reaches_the_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def run(wanted: session.Wanted, say: Any) -> Any:  # noqa: ARG001
        seen.append(wanted)
        raise UsageError("enough")

    monkeypatch.setattr(session, "run", run)
    assert main(["bench", "optimized", "--adapters", "4", "--report-dir", str(tmp_path)]) == 2
    assert seen[0].adapters == 4
    assert [c.subject for c in layers.contenders("optimized", "cpu", 4)] == ["lora_batched_linear"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--adapters", "0"], "'0' is no number of adapters: expected 1, 2, …"),
        (["--adapters", "2", "--dropout", "0.1"], "--adapters times batches, which have neither --dropout nor"),
    ],
)
def test_a_wrong_option_is_refused(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["bench", "optimized", *options])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert says in " ".join(capsys.readouterr().err.split())
