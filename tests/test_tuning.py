"""The table of block configurations: its measurements, the choices they make, and the kernels' results with each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from optimized.dispatch import routes
from optimized.dispatch.routes import why_not_one_kernel
from optimized.kernels import tune, tuned
from optimized.kernels.tiles import Config
from optimized.tuned_kernels import LINEAR_EXPAND, LINEAR_EXPAND_BACKWARD
from tests.support.interpreter import interpreted


def every_configuration() -> None:
    """Each configuration of the shipped table gives exact results on two tiles, or two loop steps, along each axis."""
    from optimized import kernels

    torch.manual_seed(0)
    tried = {}
    for entry in tuned.entries():
        config = Config(entry["blocks"], entry["num_warps"], entry["num_stages"])
        tried[str((entry["kernel"], entry["dtype"], config.blocks))] = entry, config
    for entry, config in tried.values():
        dtype = getattr(torch, entry["dtype"])
        M, N, K, R = (config.blocks.get(f"BLOCK_{axis}", 0) + 8 for axis in "MNKR")
        R = entry["R"] or R
        x, w, g = (torch.randint(-2, 3, shape).to(dtype) for shape in ((M, K), (N, K), (M, N)))
        b, s = torch.randint(-2, 3, (N, R)).to(dtype), torch.randint(-2, 3, (M, R)).float()
        if entry["kernel"] == "shrink_and_grad":
            out = torch.empty(N, R)
            t = kernels.shrink_and_grad(g, b, s, 1.0, dtype, out, config)
            assert torch.equal(t, g.float() @ b.float()), entry
            assert torch.equal(out, g.float().t() @ s), entry
        else:
            if entry["kernel"] != "linear_expand":
                w, b = w.t().contiguous().t(), b.t().contiguous().t()
            y = kernels.linear_expand(x, w, None, s, b, 1.0, config)
            assert torch.equal(y, (x.float() @ w.float().t() + s @ b.float().t()).to(dtype)), entry
    assert len(tried) == 6


def test_every_configuration_of_the_table_gives_right_results() -> None:
    interpreted(every_configuration)


def test_the_single_kernel_is_tuned_separately_for_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"M": 16, "N": 24, "K": 32, "R": 8}
    x, weight, g, A, B, S = (torch.ones(shape) for shape in ((16, 32), (24, 32), (16, 24), (8, 32), (24, 8), (16, 8)))
    seen: list[tuple[bool, bool]] = []

    def linear_expand(
        _x: torch.Tensor, w: torch.Tensor, _bias: None, _S: torch.Tensor, b: torch.Tensor, *_: object
    ) -> None:
        seen.append((w.stride(1) == 1, b.stride(1) == 1))

    monkeypatch.setattr(tune, "linear_expand", linear_expand)
    for kernel in (LINEAR_EXPAND, LINEAR_EXPAND_BACKWARD):
        run, instead, exact, _ = tune._linear_expand(kernel, x, weight, g, A, B, S)
        run(Config({}, 4, 2))
        monkeypatch.setattr(tune, "lora_expand", lambda S, B, scale, _, y: y.copy_(S @ B.mT * scale))
        instead()
        assert torch.equal(exact[0], x @ weight.mT + S @ B.mT)
    assert seen == [(True, True), (False, False)]
    asked: list[str] = []
    monkeypatch.setattr(routes, "_measured", lambda kernel, *_, **__: asked.append(kernel))
    x, weight = (torch.empty(sizes[a], sizes[b], dtype=torch.bfloat16, device="meta") for a, b in ("MK", "NK"))
    why_not_one_kernel(x, weight, 8)
    why_not_one_kernel(torch.empty(16, 24, dtype=torch.bfloat16, device="meta"), weight.mT, 8)
    assert asked == [LINEAR_EXPAND, LINEAR_EXPAND_BACKWARD]


def entry(**changed: object) -> dict[str, object]:
    """A measured entry for one bucket of sizes."""
    plain = {
        "kernel": "linear_expand",
        "device": "NVIDIA H100",
        "dtype": "bfloat16",
        "M": 8192,
        "N": 4096,
        "K": 4096,
        "R": 16,
    }
    config = {"blocks": {"BLOCK_M": 64}, "num_warps": 4, "num_stages": 3}
    times = {"milliseconds": 0.5, "instead_milliseconds": 0.6, "versions": {}}
    return {**plain, **config, "origin": tuned.MEASURED, **times, **changed}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own table for the test, in place of the package's."""
    path = tmp_path / "tuned.json"
    monkeypatch.setattr(tuned, "_shipped", lambda: tuned.entries(path))
    tuned._entry.cache_clear()
    yield path
    tuned._entry.cache_clear()


def test_a_kernel_wins_only_by_a_measurement_for_its_bucket(table: Path) -> None:
    wide, narrow = entry(M=None, blocks={"BLOCK_M": 32}, origin=tuned.MODELLED), entry(R=128, instead_milliseconds=0.4)
    tuned.write([wide, entry(), narrow], table)
    device, sizes = "NVIDIA H100 80GB HBM3", {"M": 8000, "N": 4096, "K": 4000, "R": 3}
    assert tuned.wins("linear_expand", device, torch.bfloat16, **sizes) is True
    assert tuned.wins("linear_expand", device, torch.bfloat16, **{**sizes, "R": 128}) is False
    assert tuned.wins("linear_expand", device, torch.bfloat16, **{**sizes, "M": 100}) is None
    assert tuned.wins("linear_expand", "NVIDIA H200", torch.bfloat16, **sizes) is None
    assert tuned.wins("linear_expand", device, torch.float16, **sizes) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"origin": "guessed"}, "origin 'guessed': expected"), ({"versions": None}, None)],
)
def test_an_entry_without_a_valid_origin_or_versions_is_refused(
    table: Path, changed: dict[str, object], message: str | None
) -> None:
    tuned.write([entry(**changed)], table)
    if message is None:
        found = json.loads(table.read_text())
        del found["entries"][0]["versions"]
        table.write_text(json.dumps(found))
        message = r"lacks \['versions'\]"
    with pytest.raises(ValueError, match=message):
        tuned.entries(table)


def test_the_shipped_table_has_every_kernel_for_h100_and_h200() -> None:
    shipped = tuned.entries()
    assert {(e["kernel"], e["device"]) for e in shipped} >= {
        (k, d) for k in ("shrink_and_grad", "linear_expand", "linear_expand, backward") for d in ("H100", "H200")
    }


def test_tuning_takes_the_fastest_right_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = [Config({"BLOCK_M": 16 * n}, num_warps=4, num_stages=2) for n in (1, 2, 3, 4)]
    times = iter((5.0, 3.0, 7.0))  # the two right candidates, and the kernels that they would replace
    exact = torch.ones(2, 2)

    def run(config: Config) -> tuple[torch.Tensor]:
        if config is tried[2]:
            raise RuntimeError("out of resources")
        return (exact * torch.nan if config is tried[3] else exact,)

    monkeypatch.setattr(tune, "candidates", lambda *_: tried)
    monkeypatch.setattr(tune, "_linear_expand", lambda *_: (run, lambda: None, (exact,), []))
    sizes = {"M": 8000, "N": 4096, "K": 4096, "R": 16}
    monkeypatch.setattr(tune, "_operands", lambda *_, **__: ())
    found = tune.tune("linear_expand", torch.bfloat16, "cpu", sizes, lambda _: next(times))
    assert found is not None
    assert (found["blocks"], found["milliseconds"], found["instead_milliseconds"]) == ({"BLOCK_M": 32}, 3.0, 7.0)
    assert (found["M"], found["origin"]) == (8192, tuned.MEASURED)
    again = {**found, "milliseconds": 2.0}
    assert tune.merged([found, entry()], [again]) == [entry(), again]


def test_each_size_is_tuned_once() -> None:
    found = list(tune.runs(["bfloat16", "float16"]))
    keys = [
        (d, k, *(tuned.bucket(a, s[a]) for a in ("MNR" if k == "shrink_and_grad" else "MNKR"))) for d, k, s in found
    ]
    assert len(set(keys)) == len(keys)
    assert {(d, k) for d, k, _ in found} == {
        ("bfloat16", "shrink_and_grad"),
        ("bfloat16", "linear_expand"),
        ("bfloat16", "linear_expand, backward"),
        ("float16", "shrink_and_grad"),
    }


def test_one_wrong_or_unwritten_element_makes_a_candidate_wrong() -> None:
    exact = torch.randn(256, 256)
    found = exact.clone()
    assert tune._is_right(found, exact)
    found[3, 7] = 0.0 if exact[3, 7].abs() > 0.1 else 1.0
    assert not tune._is_right(found, exact)
    assert not tune._is_right(exact * torch.nan, exact)
    written = torch.ones(2, 2)
    tune._spoil([written], (exact,))
    assert written.isnan().all()


def test_tuning_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert "no GPU at hand" in capsys.readouterr().err
