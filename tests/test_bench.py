"""`loraspec bench`: what it measures, in which order, whom it ranks, and what it says and writes."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance import cli
from conformance.bench import admission, cases, clock, layers, measuring, memory, plot, session, table, work
from conformance.bench.agreement import Agreement
from conformance.bench.cases import Size
from conformance.bench.ceilings import Ceilings
from conformance.bench.layers import Contender, Operands, Problem
from conformance.bench.measuring import FROZEN, MEASURED, UNSUPPORTED, Pace, Turn
from conformance.judge import Violation
from conformance.pristine import PRISTINE
from conformance.target import Target
from tests.commands import TARGETS

SIZE = Size(6, 40, 24, 3)
M, K, N, R = 6, 40, 24, 3
QUICK = Pace(rounds=2, seconds=1e-4)
CEILINGS = Ceilings({"float32": 1e9, "bfloat16": 2e9}, bytes=1e8, product=64, copied=1024)


def plain(x, weight, bias, lora_A, lora_B, scale, *, dropout=0.0, dropout_position="post", training=False):
    update = F.dropout(F.linear(F.linear(x, lora_A) * scale, lora_B), dropout, training)
    assert dropout_position == "post"
    return F.linear(x, weight, bias) + update


def twice(*operands, **options):
    return (plain(*operands, **options) + plain(*operands, **options)) / 2


def too_large(x, *operands, **options):  # noqa: ARG001
    raise MemoryError(f"{x.shape[0]} tokens are too many\nand more about it")


def contender(function: Any = plain, name: str = "plain", **declared: Any) -> Contender:
    thing = SimpleNamespace(lora_linear=function, CONFORMANCE=declared)
    return Contender(Target.of(thing, name), "lora_linear")


def measured(*contenders: Contender, **problem: Any) -> dict[str, Any]:
    return measuring.measure(Problem(SIZE, **{"dtype": "float32", **problem}), contenders, CEILINGS, QUICK)


def layer_of(problem: Problem, function: Any = plain) -> tuple[nn.Module, Operands]:
    operands = Operands(problem)
    return contender(function).built(problem, operands), operands


@pytest.mark.parametrize("text", ["64x256x128", "64,256,128"])
def test_a_shape_is_spelled_in_two_ways(text: str) -> None:
    assert cases.shape(text) == (64, 256, 128)


@pytest.mark.parametrize("text", ["64x256", "64x256x128x8", "64x256x0", "64x256xN", "-1x2x3", ""])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected MxKxN or M,K,N, for example 64x256x256"):
        cases.shape(text)


def test_shapes_and_ranks_are_crossed_and_have_defaults() -> None:
    assert cases.sizes([(1, 2, 3), (4, 5, 6)], [7, 8], "cpu") == (
        Size(1, 2, 3, 7), Size(1, 2, 3, 8), Size(4, 5, 6, 7), Size(4, 5, 6, 8),
    )  # fmt: skip
    assert cases.sizes([(1, 2, 3)], [], "cpu") == (Size(1, 2, 3, 16),)
    assert list(map(str, cases.sizes([], [], "cpu"))) == ["64x256x256 r8", "512x1024x1024 r16"]
    assert list(map(str, cases.sizes([], [4], "cpu"))) == ["64x256x256 r4", "512x1024x1024 r4"]
    gpu = cases.sizes([], [], "cuda:0")
    assert ({s.m for s in gpu}, {s.r for s in gpu}) == ({256, 1024, 4096, 16384}, {8, 16, 64, 128})
    assert {s.k for s in gpu} == {s.n for s in gpu} == {1024, 4096, 14336}


def test_the_formulas_operations_are_those_that_torch_counts() -> None:
    found = measured(contender())
    frozen, adapted = (sum(w.flops for w in passes(SIZE, 4)) for passes in (work.frozen, work.adapted))
    assert frozen == 4 * M * K * N
    assert adapted == frozen + 6 * M * R * (K + N)
    assert found["frozen"]["flops_counted"] == frozen
    assert found["layers"][0]["flops_counted"] == adapted


def test_every_operand_is_counted_once_for_each_pass() -> None:
    x, g, weight, bias, adapter = M * K, M * N, N * K, N, R * (K + N)
    forward, backward = work.frozen(SIZE, 2)
    assert forward.bytes == 2 * (x + weight + bias + M * N)
    assert backward.bytes == 2 * (g + weight + M * K)
    forward, backward = work.adapted(SIZE, 2)
    assert forward.bytes == 2 * (x + weight + bias + adapter + M * N)
    assert backward.bytes == 2 * (g + weight + adapter + x + M * K + adapter)  # read, then dX, and dA and dB written


def test_the_roofline_is_the_longer_of_operations_and_bytes_in_each_pass() -> None:
    bound_by_operations, bound_by_bytes = work.Work(5 * 10**9, 10**7), work.Work(10**6, 3 * 10**8)
    assert CEILINGS.least_seconds((bound_by_operations, bound_by_bytes), "float32") == 5 + 3
    assert CEILINGS.least_seconds((bound_by_operations, bound_by_bytes), "bfloat16") == 2.5 + 3


def test_work_done_twice_is_counted_twice_and_credited_once() -> None:
    (row,) = measured(contender(twice))["layers"]
    adapted = work.adapted(SIZE, 4)
    needed = sum(w.flops for w in adapted)
    assert row["flops_counted"] == 2 * needed
    assert row["flops_per_second"] * row["seconds"] == pytest.approx(needed)
    assert row["bytes_per_second"] * row["seconds"] == pytest.approx(sum(w.bytes for w in adapted))
    assert row["of_flops_ceiling"] == pytest.approx(row["flops_per_second"] / 1e9)
    assert row["of_bytes_ceiling"] == pytest.approx(row["bytes_per_second"] / 1e8)
    assert row["over_roofline"] == pytest.approx(row["seconds"] / CEILINGS.least_seconds(adapted, "float32"))


class Machine:
    """Clocks whose layers take 1, 2 and 3 seconds, ten times as long in the second round."""

    def __init__(self, patch: pytest.MonkeyPatch, turns: dict[str, Turn]) -> None:
        self.names = {turn.layer: name for name, turn in turns.items()}
        self.seen: list[str] = []
        self.durations = dict(zip(turns, (1.0, 2.0, 3.0), strict=True))
        for name, turn in turns.items():
            turn.layer.register_forward_hook(lambda *_, name=name: self.seen.append(name))
        patch.setattr(clock, "calls", lambda *_: 1)
        patch.setattr(clock, "seconds", self.seconds)

    def seconds(self, step: Any, *_: Any) -> float:
        step()
        turn = len(self.seen) - 1 - len(self.durations)  # each ran once before
        return self.durations[self.seen[-1]] * (10 if turn // 3 == 1 else 1)


def test_layers_take_turns_and_ratios_are_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(SIZE, "float32")
    operands = Operands(problem)
    turns = {name: Turn(contender().built(problem, operands), nullcontext) for name in ("first", "second", "third")}
    machine = Machine(monkeypatch, turns)
    times = measuring.interleaved(turns, operands, "cpu", Pace(rounds=3))
    a, b, c = turns
    assert machine.seen == [a, b, c, a, b, c, b, c, a, c, a, b]
    assert times == {"first": [1, 10, 1], "second": [2, 20, 2], "third": [3, 30, 3]}
    assert measuring.spread(times["third"], times["second"]) == {"median": 1.5, "quartiles": [1.5, 1.5]}


def test_a_ratio_has_its_quartiles() -> None:
    assert measuring.spread([1, 2, 3, 4, 5, 6, 7], [1] * 7) == {"median": 4, "quartiles": [2, 6]}
    assert measuring.spread([2, 4], [1, 4])["median"] == 1.5


def test_on_a_cpu_a_step_is_called_as_often_as_asked() -> None:
    seen: list[int] = []
    for number in (5, 50):
        assert clock.seconds(lambda: seen.append(number), "cpu", number, 1.0) > 0  # noqa: B023
    assert seen.count(50) - seen.count(5) == 45
    assert clock.calls(lambda: sum(range(1000)), "cpu", 0.0) == 1
    assert clock.calls(lambda: None, "cpu", 0.01) > 10


def test_on_a_gpu_the_clock_is_triton_s(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton.testing

    real = inspect.signature(triton.testing.do_bench)
    asked: list[dict[str, Any]] = []

    def do_bench(*given: Any, **options: Any) -> float:
        asked.append(real.bind(*given, **options).arguments)
        return 3.0  # milliseconds

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    assert clock.seconds(int, "cuda", 1, 0.02) == clock.fastest(int, "cuda:1", 0.5) == 0.003
    assert asked == [
        {"fn": int, "warmup": 10, "rep": 20, "return_mode": "median"},
        {"fn": int, "warmup": 250, "rep": 500, "return_mode": "min"},
    ]
    assert clock.calls(int, "cuda", 1.0) == 1


class Keeping(torch.autograd.Function):
    """Keeps a tensor where autograd does not see it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x.new_zeros(1000)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.kept[0]


def test_memory_is_exact_for_known_layers() -> None:
    layer, operands = layer_of(Problem(SIZE, "float32"))
    x, g = operands.x, operands.g
    assert memory.saved_bytes(operands.frozen, x) == 0
    assert memory.peak_bytes(operands.frozen, x, g) == 4 * (M * N + M * K)  # y and dX
    assert memory.saved_bytes(layer, x) == 4 * M * R
    half, operands = layer_of(Problem(SIZE, "bfloat16"))
    assert memory.saved_bytes(half, operands.x) == 2 * M * R


def test_a_storage_is_counted_once_and_a_hidden_tensor_in_the_peak_alone() -> None:
    _, operands = layer_of(Problem(SIZE, "float32"))
    x, g = operands.x, operands.g

    def squared(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
        z = F.linear(x, weight)
        return z * z.view_as(z)

    layer, _ = layer_of(Problem(SIZE, "float32"), squared)
    assert memory.saved_bytes(layer, x) == 4 * M * N
    hiding, _ = layer_of(Problem(SIZE, "float32"), lambda x, *rest: F.linear(Keeping.apply(x), rest[0]))
    assert memory.saved_bytes(hiding, x) == 0
    assert memory.peak_bytes(hiding, x, g) >= 4 * (1000 + M * N + M * K)


def test_the_peak_is_what_is_held_at_a_time() -> None:
    def freeing(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
        for _ in range(3):
            x.new_empty(4000)  # gone at once
        return F.linear(x, weight)

    layer, operands = layer_of(Problem(SIZE, "float32"), freeing)
    assert memory.peak_bytes(layer, operands.x, operands.g) == 4 * 4000


def test_a_layer_holds_the_same_adapter_as_every_other() -> None:
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


def test_a_function_is_timed_where_there_is_no_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(TARGETS), *sys.path])
    (only,) = layers.contenders("right", "cpu")
    assert only.label == "right lora_linear"


def test_what_a_target_replaces_is_in_force_in_its_own_turn_only() -> None:
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


def test_a_layer_that_raises_or_does_not_declare_the_dtype_leaves_the_others_measured() -> None:
    found = measured(
        contender(too_large, "large"), contender(plain, "narrow", dtypes=("bfloat16",)), contender(twice, "twice")
    )
    status = {row["label"].split()[0]: row["status"] for row in found["layers"]}
    assert status == {"twice": MEASURED, "large": "raises MemoryError: 6 tokens are too many", "narrow": UNSUPPORTED}
    assert found["layers"][0]["label"] == "twice lora_linear"
    assert set(found["layers"][0]["over"]) == {FROZEN}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("result", ["y", "dX", "dA", "dB"])
def test_a_layer_that_is_wrong_at_the_size_it_is_timed_on_is_not_ranked(result: str, dtype: str) -> None:
    class Off(torch.autograd.Function):
        """The layer with 10 % too much of one result."""

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
    assert right["layers"][0]["status"] == MEASURED
    wrong = result
    (row,) = measured(contender(Off.apply), dtype=dtype)["layers"]
    assert row["status"].startswith(f"wrong at this size, not ranked: {result}[")
    assert session.exit_code({"targets": [], "cases": [{"layers": [row]}]}) == 1


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


def test_dropout_is_where_every_target_can_have_it() -> None:
    pre, either = contender(dropout_positions=("pre",)), contender()
    assert session._position([either, pre]) == "pre"
    assert session._position([either, either]) == "post"
    post = contender(name="later", dropout_positions=("post",))
    with pytest.raises(session.UsageError, match=r"no dropout position is common.*plain: pre, later: post"):
        session._position([pre, post])
    assert measured(either, dropout=0.5)["layers"][0]["saved_bytes"] > 4 * M * R  # in training, with a mask


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str, Path]:
    """A right and a wrong target, judged by one clause: the exit code, the report, what was printed, the folder."""
    folder = tmp_path_factory.mktemp("bench")
    command = ["bench", "right", "unscaled", "--shapes", "6x40x24", "8,16,16", "--rank", "3", "--rounds", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(TARGETS), *sys.path])
        patch.setenv("PYTHONPATH", str(TARGETS))
        patch.setattr(session, "examined", functools.partial(admission.examined, clauses=("LIN-FWD",)))
        patch.setattr(admission.run, "execute", functools.partial(admission.run.execute, workers=0))
        patch.setattr("conformance.bench.ceilings.PRODUCT", {"cpu": 64})
        patch.setattr("conformance.bench.ceilings.COPIED", {"cpu": 2**16})
        patch.setattr(session.ceilings, "measured", functools.partial(session.ceilings.measured, duration=0.01))
        with (folder / "printed").open("w+", encoding="utf-8") as out:
            patch.setattr(sys, "stdout", out)
            code = cli.main([*command, "--seconds", "0.0001", "--plot", "--report-dir", str(folder)])
            patch.undo()
    text = (folder / "printed").read_text(encoding="utf-8")
    return code, json.loads((folder / "bench.json").read_text(encoding="utf-8")), text, folder


def test_a_failing_target_is_not_ranked(ranked: tuple[int, dict[str, Any], str, Path]) -> None:
    code, found, text, _ = ranked
    assert code == 1
    assert [(t["spec"], t["verdict"], list(t["failing"])) for t in found["targets"]] == [
        ("right", "pass", []),
        ("unscaled", "fail", ["LIN-FWD"]),
    ]
    assert [[row["target"] for row in case["layers"]] for case in found["cases"]] == [["right"], ["right"]]
    assert text.count("fails, not ranked") == 2 + 1
    assert "unscaled fails, not ranked: LIN-FWD; see `loraspec run unscaled`" in text
    assert "right 1.0: 1 clauses of group linear pass." in text


def test_the_report_says_what_was_measured_on_what(ranked: tuple[int, dict[str, Any], str, Path]) -> None:
    _, found, text, folder = ranked
    assert [(c["M"], c["K"], c["N"], c["r"], c["dtype"]) for c in found["cases"]] == [
        (6, 40, 24, 3, "float32"),
        (8, 16, 16, 3, "float32"),
    ]
    assert found["ceilings"]["flops"]["float32"] > 0
    assert found["ceilings"]["bytes"] > 0
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    for case in found["cases"]:
        for row in (case["frozen"], *case["layers"]):
            assert len(row["rounds"]) == found["pace"]["rounds"] == 2
    (row,) = found["cases"][0]["layers"]
    assert (row["saved_bytes"], row["flops_counted"]) == (4 * M * R, 4 * M * K * N + 6 * M * R * (K + N))
    assert f"6x40x24 r3 float32 on {found['device_name']}" in text
    assert f"{row['over'][FROZEN]['median']:.2f}" in text
    assert "(a product of 64x64x64)" in text
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


def case_of(*ratios: float) -> dict[str, Any]:
    """A case in which layers a, b, … took so long over the frozen layer."""
    labels = "abcdefgh"[: len(ratios)]
    costs = {"seconds": 1e-3, "flops_per_second": 2.5e9, "bytes_per_second": 1e6, "of_flops_ceiling": 0.5,
             "of_bytes_ceiling": 0.01, "over_roofline": 2.0, "saved_bytes": 1234, "peak_bytes": 999}  # fmt: skip
    rows = [{"label": name, "status": MEASURED, **costs} for name in labels]
    for mine, row in zip(ratios, rows, strict=True):
        others = {name: mine / ratio for name, ratio in zip(labels, ratios, strict=True) if name != row["label"]}
        others[FROZEN] = mine
        row["over"] = {name: {"median": r, "quartiles": [r - 0.1, r + 0.1]} for name, r in others.items()}
    frozen = {"label": FROZEN, **costs, "over": {}}
    return {"case": "6x40x24 r3 float32", "M": M, "K": K, "N": N, "r": R, "frozen": frozen, "layers": rows}


def test_the_table_has_places_and_ratios_over_each_other_layer() -> None:
    case = case_of(1.2, 1.8)
    case["layers"].append({"label": "c", "status": "raises MemoryError: no"})
    first, one, two, raising, failing = table.rows(case, ["wrong"])
    assert table.headings(2)[:7] == ["", "layer", "time", "÷ frozen", "quartiles", "÷ 1", "÷ 2"]
    assert first[:4] == ["", FROZEN, "1 ms", "1"]
    assert one[:7] == ["1", "a", "1 ms", "1.20", "1.10–1.30", "", "0.67"]
    assert two[:7] == ["2", "b", "1 ms", "1.80", "1.70–1.90", "1.50", ""]
    assert two[7:] == ["2.5 G 50%", "1 M 1%", "2.00", "1.23 kB", "999 B"]
    assert raising == ["–", "c", "raises MemoryError: no"]
    assert failing == ["–", "wrong", "fails, not ranked"]


def test_a_ceiling_that_was_exceeded_is_said_to_be_none(ranked: tuple[int, dict[str, Any], str, Path]) -> None:
    found = json.loads(json.dumps(ranked[1]))
    for share, said in ((0.9, 0), (1.1, 1)):
        for case in found["cases"]:
            case["frozen"]["of_flops_ceiling"] = case["layers"][0]["of_flops_ceiling"] = share
        assert sum("above 100%" in sentence for sentence in table.sentences(found)) == said


def test_exit_code_1_needs_a_failing_target_or_a_layer_that_raises() -> None:
    passing, failing = {"verdict": "pass"}, {"verdict": "fail"}
    silent: dict[str, Any] = {"layers": [{"status": MEASURED}, {"status": UNSUPPORTED}]}
    raising: dict[str, Any] = {"layers": [{"status": "raises MemoryError: no"}]}
    assert session.exit_code({"targets": [passing], "cases": [silent]}) == 0
    assert session.exit_code({"targets": [passing, failing], "cases": [silent]}) == 1
    assert session.exit_code({"targets": [passing], "cases": [silent, raising]}) == 1


def test_the_plot_needs_matplotlib_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    monkeypatch.setattr(session, "run", lambda *_: pytest.fail("measured"))
    assert cli.main(["bench", "right", "--plot", "--report-dir", str(tmp_path)]) == 2
    assert "--plot needs matplotlib: pip install 'loraspec[demo]'" in capsys.readouterr().err


def test_the_plot_has_every_layer_in_every_panel() -> None:
    found = [case_of(1.2, 1.8), case_of(1.1, 1.3, 1.4)]
    assert [row["over"][FROZEN]["median"] for _, row in plot.points(found, "c")] == [1.4]
    assert len(plot.points(found, "a")) == 2
    styles = plot.styles(found)
    assert list(styles) == ["a", "b", "c"]
    assert len({style["color"] for style in styles.values()}) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shapes", "64x256"], "shape '64x256': expected MxKxN or M,K,N"),
        (
            ["--shapes", "64x256x256", "right"],
            "for example 64x256x256; targets come before --shapes",
        ),
        (["--rank", "0"], "'0' is no rank"),
        (["--rounds", "1"], "'1' is no number of rounds: expected 2, 3"),
        (["--dropout", "2"], "'2' is no dropout probability: expected 0 to 1"),
        (["--seconds", "soon"], "'soon' is no number of seconds"),
        (["--dtype", "fp32"], "unknown dtype 'fp32': expected one of float64, float32"),
        (["--device", "mps"], "unknown device 'mps'"),
        (["--report-dir", __file__], "cannot write reports to"),
    ],
)
def test_a_mistake_is_one_message_and_exit_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["bench", "right", *arguments])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    assert says in capsys.readouterr().err
