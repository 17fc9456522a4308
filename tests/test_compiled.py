"""`ci/compile` compiles only changed kernels, and fails if a compilation contradicts the record."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ci import compile_record, compile_report
from ci.compile_digest import digest, functions
from ci.compile_jobs import Job, jobs
from ci.compile_record import Measured
from ci.compile_sources import Source, source_of

KERNEL = '''
"""A kernel with a function of its own, one of another module, and a global."""
import triton
import triton.language as tl
from {helpers} import rounded

MOST = tl.constexpr(8)
STEP = 2


@triton.jit
def half(tile):
    return tile / 2


@triton.jit
def kernel(x_ptr, N, BLOCK: tl.constexpr):
    """What it does."""
    offs = tl.arange(0, BLOCK)  # a comment
    x = tl.load(x_ptr + offs * STEP, mask=offs < N, other=0.0)
    tl.store(x_ptr + offs, rounded(half(x)), mask=offs < MOST)
'''
HELPERS = """
import triton
import triton.language as tl


@triton.jit
def rounded(tile):
    return tile.to(tl.float16)


@triton.jit
def not_called(tile):
    return tile
"""
NUMBERS = itertools.count()
Made = Callable[..., Any]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A function that makes the kernel in fresh modules, with `before` replaced by `after` in their text."""

    def make(before: str = "", after: str = "") -> Any:
        assert before in KERNEL + HELPERS
        names = [f"{kind}_{next(NUMBERS)}" for kind in ("helpers", "kernels")]
        for name, text in zip(names, (HELPERS, KERNEL.replace("{helpers}", names[0])), strict=True):
            file = tmp_path / f"{name}.py"
            file.write_text(text.replace(before, after) if before else text)
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        return module.kernel

    return make


def text_of(kernel: Any) -> str:
    """The source of a kernel's functions, without the numbers in its modules' names."""
    text = "\n".join(functions(kernel))
    for name in {word for word in text.split() if word.startswith(("kernels_", "helpers_"))}:
        text = text.replace(name.partition(".")[0], name.partition("_")[0])
    return text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("offs < N", "offs <= N"),
        ("tile / 2", "tile / 3"),
        ("tl.float16", "tl.bfloat16"),
        ("STEP = 2", "STEP = 3"),
        ("constexpr(8)", "constexpr(9)"),
        ("other=0.0", "other=-0.0"),
        ("@triton.jit\ndef half", "@triton.jit(noinline=True)\ndef half"),
    ],
)
def test_a_change_in_the_kernel_a_helper_or_a_global_changes_the_digest(made: Made, before: str, after: str) -> None:
    assert text_of(made(before, after)) != text_of(made())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  # a comment", ""),
        ("What it does.", "What it does not."),
        ("MOST = ", "\n\nMOST = "),
        ("    return tile\n", "    return -tile\n"),
    ],
)
def test_comments_and_uncalled_functions_do_not_change_the_digest(made: Made, before: str, after: str) -> None:
    assert text_of(made(before, after)) == text_of(made())


def test_a_global_without_a_textual_form_is_refused(made: Made) -> None:
    with pytest.raises(TypeError, match="kernel reads STEP, a object: no digest"):
        functions(made("STEP = 2", "STEP = object()"))


@pytest.mark.parametrize(
    "change",
    [
        {"signature": {"x_ptr": "*fp32", "N": "i64", "BLOCK": "constexpr"}},
        {"constants": {"BLOCK": 32}},
        {"aligned": (0, 1)},
        {"options": {"num_warps": 8}},
        {"options": {"num_warps": 4, "enable_fp_fusion": False}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_types_constants_and_options_change_the_digest(made: Made, change: dict[str, Any]) -> None:
    signature = {"x_ptr": "*fp32", "N": "i32", "BLOCK": "constexpr"}
    source = Source(made(), signature, {"BLOCK": 16}, (0,), {"num_warps": 4})
    assert digest(source, 90, "3.8.0") == digest(replace(source), 90, "3.8.0")
    assert digest(source, 90, "3.8.0") != digest(replace(source, **change), 90, "3.8.0")


def test_the_architecture_triton_and_the_measuring_code_change_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs()[0]
    found = {compile_report.digest_of(j) for j in (job, replace(job, arch=100), replace(job, arch=90))}
    found.add(compile_report.digest_of(job, version="3.9.0"))
    monkeypatch.setitem(compile_report.TENSOR_CORE, "mma", "mma.sync.aligned")
    found.add(compile_report.digest_of(job))
    monkeypatch.setattr(compile_report, "compiled", compile_report.source_of)  # any other function: its source differs
    found.add(compile_report.digest_of(job))
    assert len(found) == 6


def test_every_job_has_its_own_digest() -> None:
    wanted = jobs()
    assert len({compile_report.digest_of(job) for job in wanted}) == len(wanted) > 100
    of_kernels = {job.kernel: "\n".join(functions(source_of(job).kernel)) for job in wanted}
    assert "def is_kept" in of_kernels["lora_expand"]
    assert "def value_and_slope" in of_kernels["gated_activation"]
    assert all(
        "def as_stored" in text or kernel in ("lora_shrink", "shrink_and_grad") for kernel, text in of_kernels.items()
    )


GOOD = Measured(40, 0, 1024, "mma", descriptors=False, fused=False)
Run = Callable[..., tuple[int, list[Job], str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs `ci/compile` on three jobs with fake results: it returns exit code, compiled jobs, text."""
    chosen = [job for job in jobs() if job.kernel == "lora_expand" and job.compute != "float32"][:3]

    def command(*arguments: str, gives: Measured = GOOD, of: list[Job] | None = None) -> tuple[int, list[Job], str]:
        made: list[Job] = []
        monkeypatch.setattr(compile_report, "jobs", lambda: chosen if of is None else of)
        monkeypatch.setattr(compile_report, "compile_all", lambda these: made.extend(these) or [gives] * len(these))
        code = compile_report.main(list(arguments), tmp_path / "compiled.csv")
        return code, made, capsys.readouterr().out

    return command


def test_a_job_with_a_recorded_entry_is_not_compiled_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, made, said = run()
    assert (code, len(made)) == (0, 3)
    assert "3 compilations with triton" in said
    assert "3 made now\n`ci/compile --record` writes" in said
    assert run("--record")[:2] == (0, made)
    code, made_again, said = run()
    assert (code, made_again) == (0, [])
    assert said.endswith("0 faulty; 0 made now\n")
    assert len(said.splitlines()) == 1 + 3 + 1 + 1
    wider = [replace(made[0], config=replace(made[0].config, num_warps=8)), *made[1:]]
    assert run(of=wider)[1] == wider[:1]
    monkeypatch.setattr(compile_report.digest_of, "__defaults__", ("3.9.0",))
    assert run()[1] == made


def test_a_fault_fails_the_check_whether_compiled_now_or_recorded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, said = run(gives=replace(GOOD, spill_bytes=8))
    assert code == 1
    assert said.count("spills 8 bytes") == 3
    run("--record")
    assert run()[0] == 0
    monkeypatch.setattr(compile_report, "SHARED_BYTES", dict.fromkeys((80, 90, 100), 1000))
    code, made, said = run()
    assert (code, made) == (1, [])
    assert "wants 1024 bytes of shared memory, sm_80 has 1000" in said


def test_with_all_every_job_is_compiled_and_compared_with_the_record(run: Run) -> None:
    wanted = run("--record")[1]
    code, made, said = run("--all")
    assert (code, made) == (0, wanted)
    code, _, said = run("--all", gives=replace(GOOD, registers=41, descriptors=True))
    assert code == 1
    assert said.count("registers 40 is 41, descriptors False is True") == 3
    code, _, said = run("--all", of=wanted[:1])
    assert code == 1
    assert "compiled.csv: 2 entries are of no job" in said
    code, _, said = run("--all", of=[*wanted, replace(wanted[0], dropped=True)])
    assert code == 1
    assert said.count("has no entry") == 1


def test_a_record_is_read_back_as_written(run: Run, tmp_path: Path) -> None:
    wanted = run("--record", "--json", str(tmp_path / "rows.json"))[1]
    path = tmp_path / "compiled.csv"
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + len(wanted)
    assert compile_record.read(path) == {compile_report.digest_of(job): GOOD for job in wanted}
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == len(wanted)
    path.write_text("\n".join([*lines[:2], lines[2].replace("False", "false"), *lines[3:]]))
    with pytest.raises(ValueError, match=r"compiled\.csv, line 3 is not a row of a compilation"):
        compile_record.read(path)


def test_the_committed_record_has_every_kernel_and_no_spills() -> None:
    with compile_record.RECORD.open(encoding="utf-8", newline="") as file:
        rows = list(compile_record.csv.DictReader(file))
    assert {row["kernel"] for row in rows} == {job.kernel for job in jobs()}
    assert len(compile_record.read()) == len(rows)
    assert not any(int(row["spill_bytes"]) for row in rows)
