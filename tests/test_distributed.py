"""Ranks that die, hang or raise; the tensor-parallel styles in a model; and the table of group `distributed`."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

import optimized
import reference
from conformance import cli
from conformance.cases.case import Case
from conformance.clauses.distributed.rank_process import PATIENCE
from conformance.clauses.distributed.ranks import on_ranks
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.numerics.formats import dtype_named
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.calls import calling
from conformance.target.target import Target
from optimized.dispatch.fused_node import why_not_fused
from tests.support.commands import PATIENCE as SECONDS

ROOT = Path(__file__).parent.parent
MARK = "LORASPEC_TEST_RANK"


def eventually(holds: Callable[[], bool]) -> bool:
    """Wait until a condition holds; False if it does not in time."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_each_rank_answers_and_all_ranks_form_one_group() -> None:
    def work(rank: int) -> dict[str, object]:
        total = torch.tensor([float(rank)])
        distributed.all_reduce(total)
        return {"total": total, "rank": rank, "world": distributed.get_world_size()}

    answers = on_ranks(2, work)
    assert [answer["rank"] for answer in answers] == [0, 1]
    assert [(float(answer["total"]), answer["world"]) for answer in answers] == [(1.0, 2)] * 2


def test_a_violation_on_a_rank_keeps_the_targets_error_as_its_cause() -> None:
    """The suite reads the cause: without it, a target that refuses a dtype by raising would count as accepting it."""

    def work(_: int) -> dict[str, object]:
        with calling("the layer"):
            raise TypeError("no such dtype")

    with pytest.raises(Violation, match="the layer raised TypeError: no such dtype") as caught:
        on_ranks(2, work)
    assert "no such dtype" in str(caught.value.__cause__)


def failing(kind: str) -> object:
    """Work in which rank 1 fails while rank 0 waits for it in a collective."""

    def work(rank: int) -> dict[str, object]:
        if rank == 1:
            if kind == "exit":
                os.write(2, b"out of luck\n")
                os._exit(7)
            if kind == "signal":
                os.kill(os.getpid(), signal.SIGSEGV)
            if kind == "error":
                dtype_named("of the suite")  # raises in the suite's own code
            if kind == "undecided":
                raise Inconclusive("nothing to see")
            with calling("the layer"):
                raise {"raise": ValueError, "quit": SystemExit, "refuse": NotImplementedError}[kind]("not here")
        with calling("all_reduce"):
            distributed.all_reduce(torch.ones(1))
        return {}

    return work


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("exit", Violation, "rank 1 of 2 ended with exit status 7 before it was done\n         out of luck"),
        ("signal", Violation, "rank 1 of 2 ended by signal SIGSEGV before it was done"),
        ("raise", Violation, "on rank 1 of 2: the layer raised ValueError: not here"),
        ("quit", Violation, "on rank 1 of 2: the layer raised SystemExit: not here"),
        ("refuse", Refused, "on rank 1 of 2: the layer raised NotImplementedError: not here"),
        ("undecided", Inconclusive, "on rank 1 of 2: nothing to see"),
        ("error", RuntimeError, "on rank 1 of 2: Traceback"),
    ],
)
def test_the_message_names_the_failing_rank_and_not_the_waiting_one(
    kind: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        on_ranks(2, failing(kind))  # type: ignore[arg-type]
    assert str(caught.value).startswith(says)


def test_hanging_ranks_are_named_with_their_location_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "4")
    monkeypatch.setenv(MARK, mark := f"hung-{os.getpid()}")

    def sleep_on(rank: int) -> dict[str, object]:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        while rank == 1:
            time.sleep(0.01)
        distributed.all_reduce(torch.ones(1))
        return {}

    with pytest.raises(Violation) as caught:
        on_ranks(2, sleep_on)
    assert str(caught.value).startswith("all 2 ranks have not ended within 4 s\n         rank 0 is in ")
    assert str(caught.value).endswith("rank 1 is in sleep_on (test_distributed.py)")
    assert eventually(lambda: not marked(mark))


def test_a_case_that_hangs_is_not_tried_again() -> None:
    """Each smaller case would also run into a time limit, and the trial would reach its own limit first."""
    clause, seen = load_all()["DIS-EMPTY"], []

    def hangs(_: object, case: Case) -> None:
        seen.append(case)
        raise Violation("rank 1 of 2 has not ended within 60 s", is_slow=True)

    (subject, *_) = Target.of(reference).subjects(clause)
    result = Examination(dataclasses.replace(clause, check=hangs), subject, "float32", PROFILES["quick"]).run()
    assert (result.status, len(seen)) == ("fail", 1)


def marked(mark: str) -> list[int]:
    """Process ids of all other running processes that have the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes() and int(path.name) != os.getpid():
                found.append(int(path.name))
        except OSError:
            continue
    return found


FORKS_AND_WAITS = """
import time
from conformance.clauses.distributed.ranks import on_ranks

def work(rank):
    open("rank-" + str(rank), "w").close()
    time.sleep(600)

on_ranks(2, work)
"""


def test_ranks_end_when_their_parent_process_is_killed(tmp_path: Path) -> None:
    mark = f"orphan-{os.getpid()}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: mark}
    parent = subprocess.Popen([sys.executable, "-c", FORKS_AND_WAITS], cwd=tmp_path, env=environment)
    try:
        assert eventually(lambda: len(list(tmp_path.glob("rank-*"))) == 2)
        assert len(marked(mark)) == 3
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: not marked(mark))


class Block(nn.Module):
    """Two adapted layers, like a transformer's feed-forward block."""

    def __init__(self, layer: type) -> None:
        super().__init__()
        self.up, self.down = layer(nn.Linear(6, 8), 3), layer(nn.Linear(8, 5), 2)
        for adapted in (self.up, self.down):
            nn.init.normal_(adapted.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("package", [reference, optimized], ids=["reference", "optimized"])
def test_a_colwise_then_rowwise_block_equals_the_unsplit_block(package: object) -> None:
    torch.manual_seed(0)
    block = Block(package.LinearLoRA).double()  # type: ignore[attr-defined]
    x = torch.randn(2, 3, 6, dtype=torch.float64)

    def work(_: int) -> dict[str, object]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import parallelize_module

        one = copy.deepcopy(block)
        one(x).square().sum().backward()
        styles = {"up": package.colwise_parallel_lora(), "down": package.rowwise_parallel_lora()}  # type: ignore[attr-defined]
        split = parallelize_module(block, init_device_mesh("cpu", (2,)), styles)
        reason = why_not_fused(split.up.weight)
        y = split(x)
        y.square().sum().backward()
        pairs = [(y, one(x))]
        for name in ("up", "down"):
            a, b = getattr(split, name), getattr(one, name)
            pairs += [
                (getattr(a, p).weight.grad.full_tensor(), getattr(b, p).weight.grad) for p in ("lora_A", "lora_B")
            ]
        found = float(package.clip_grad_norm_(split.parameters(), 0.5))  # type: ignore[attr-defined]
        wanted = float(package.grad_norm(one.parameters()))  # type: ignore[attr-defined]
        worst = max(float((a - b).abs().max()) for a, b in pairs)
        return {"worst": worst, "norm": found / wanted, "reason": reason}

    for answer in on_ranks(2, work):
        assert answer["worst"] < 1e-9
        assert answer["norm"] == pytest.approx(1.0, rel=1e-6)
        assert answer["reason"] == "DTensor is a tensor subclass with products of its own"


@pytest.mark.parametrize("style", [reference.colwise_parallel_lora, reference.rowwise_parallel_lora])
def test_a_style_refuses_what_it_cannot_split(style: object) -> None:
    def work(_: int) -> dict[str, object]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import parallelize_module

        said = []
        for layer in (nn.Linear(4, 4), reference.LinearLoRA(nn.Linear(4, 4), use_dora=True)):
            try:
                parallelize_module(layer, init_device_mesh("cpu", (1,)), style())  # type: ignore[operator]
            except ValueError as error:
                said.append(str(error))
        return {"said": said}

    assert on_ranks(1, work)[0]["said"] == [
        "got a Linear without lora_A and lora_B: expected a LinearLoRA",
        "the layer has a lora_magnitude: DoRA's row norms are not split over ranks",
    ]


def test_the_table_has_a_row_per_clause_and_strategy_and_a_column_per_rank_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["ranks", "reference", "--ranks", "1", "2", "--clause", "DIS-EMPTY", "DIS-NONFINITE"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| clause | subject | strategy | 1 rank | 2 ranks |"
    rows = [[cell.strip().partition(",")[0] for cell in line.strip("|").split("|")] for line in lines[2:-2]]
    layers, norm = ("LinearLoRA", "TritonLinearLoRA"), "clip_grad_norm_"
    expected = [["DIS-NONFINITE", norm, spread, "pass", "pass"] for spread in ("rows", "columns", "grid")]
    expected += [["DIS-EMPTY", layer, strategy, "", "pass"] for layer in layers for strategy in ("ddp", "fsdp")]
    assert sorted(rows) == sorted(expected)


def test_the_table_shows_failures_and_the_command_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    target = "tests.known_bad.distributed.grad_norm:TakesTheNormOfItsOwnPart"
    assert cli.main(["ranks", target, "--ranks", "2", "--clause", "DIS-CLIP", "--json"]) == 1
    cells = {cell["strategy"]: cell for cell in json.loads(capsys.readouterr().out)}
    assert cells["copies"]["status"] == "pass"
    assert cells["rows"]["status"] == "fail"
    assert "norm on rank 0 of 2" in cells["rows"]["message"]


def test_the_table_refuses_a_target_without_distributed_clauses(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ranks", "tests.baselines.gradnorm:Right"]) == 2
    assert "claims no clause of group distributed: it has no LinearLoRA" in capsys.readouterr().err
