"""Training runs that are saved, interrupted and resumed: they end as if they had not been interrupted."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance.clauses.checkpoint.atomic_save import files_up_to
from conformance.clauses.checkpoint.target_calls import ONE, folder, raised
from conformance.clauses.checkpoint.training_run import CALLS, NEEDS, RUNS, Run, RunCase, require_state
from conformance.isolation.process_state import RANDOM, changes, kept, taken
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

TYPES = ("float32", "float64", "bfloat16")


def save(subject: Subject, run: Run, path: Any, *step: int) -> None:
    """Call the target's `save_training(training, path, step)`."""
    with calling_quietly("save_training(training, path, step)"):
        subject.target.save_training(run.training, str(path), *step)


def load(subject: Subject, run: Run, path: Any) -> Any:
    """The result of the target's `load_training(training, path)`."""
    with calling_quietly("load_training(training, path)"):
        return subject.target.load_training(run.training, str(path))


@clause(
    "CKP-RESUME",
    sentence="""A run that is saved after any micro-batch, even within an accumulation window, and loaded into new
    objects ends with the same parameters, buffers, optimiser state and learning rates as the uninterrupted run, bit
    for bit.""",
    cases=RUNS,
    dtypes=TYPES,
    needs=NEEDS,
)
def test_resume(subject: Subject, case: RunCase) -> None:
    with folder() as path:
        whole = Run(subject, case).go(case.cut)
        save(subject, whole, path, case.cut)
        at_cut = whole.state()
        expected = whole.go(CALLS).state()
        resumed = Run(subject, case)
        torch.manual_seed(case.seed + 1)  # a new process has another random state
        load(subject, resumed, path)
        require_state(resumed, at_cut, "load_training, loaded")
        resumed.done = case.cut
    require_state(resumed.go(CALLS), expected, "load_training, resumed")


@clause(
    "CKP-RESUME-STEP",
    sentence="load_training returns the step that was given to save_training, or 0 if none was given.",
    cases=RUNS.narrowed(how=("given", "not given")),
    dtypes=ONE,
    needs=NEEDS,
    weight=0.5,
)
def test_step(subject: Subject, case: RunCase) -> None:
    step = case.cut + 10**9 * (case.seed % 2)
    with folder() as path:
        save(subject, Run(subject, case).go(1), path, *([step] if case.how == "given" else []))
        found = load(subject, Run(subject, case), path)
    wanted = step if case.how == "given" else 0
    require(type(found) is int and found == wanted, f"load_training returned {found!r}: expected {wanted}")


@clause(
    "CKP-RESUME-RANDOM",
    sentence="After load_training torch, NumPy and Python draw the same random numbers as after save_training.",
    cases=RUNS,
    dtypes=ONE,
    needs=NEEDS,
    weight=0.5,
)
def test_random_states(subject: Subject, case: RunCase) -> None:
    with folder() as path:
        run = Run(subject, case).go(case.cut)
        np.random.standard_normal(case.seed % 3)  # after an odd number of draws NumPy holds one normal in reserve
        random.gauss(0, 1)
        save(subject, run, path, case.cut)
        expected = _draws()
        _draws()
        load(subject, Run(subject, case), path)
        found = _draws()
    for source, values in expected.items():
        require(
            found[source] == values,
            f"load_training: {source} draws {found[source][:2]} after loading: expected {values[:2]}",
        )


def _draws() -> dict[str, list[float]]:
    return {
        "torch": torch.randn(3).tolist(),
        "NumPy": np.random.standard_normal(3).tolist(),
        "Python": [random.gauss(0, 1) for _ in range(3)],
    }


@clause(
    "CKP-RESUME-EFFECTS",
    sentence="save_training changes nothing in the run, no random state and no global setting.",
    cases=RUNS,
    dtypes=ONE,
    needs=NEEDS,
    weight=0.5,
)
def test_saving_a_run_changes_nothing(subject: Subject, case: RunCase) -> None:
    run = Run(subject, case).go(case.cut)
    before = run.state()
    with folder() as path, kept("save_training"):
        save(subject, run, path, case.cut)
    require_state(run, before, "after save_training")


@clause(
    "CKP-RESUME-SWITCHES",
    sentence="""load_training restores gradient_accumulation_steps, max_grad_norm, run_optimizer and calibrate, and
    changes no global setting except random states.""",
    cases=RUNS.narrowed(how=("run_optimizer", "calibrate", "neither")),
    dtypes=ONE,
    needs=NEEDS,
    weight=0.5,
)
def test_switches(subject: Subject, case: RunCase) -> None:
    with folder() as path:
        run = Run(subject, case).go(case.cut)
        run.training.toggle_run_optimizer(case.how == "run_optimizer")
        run.training.toggle_calibrate(case.how == "calibrate")
        save(subject, run, path, case.cut)
        other = Run(subject, dataclasses.replace(case, steps=case.steps + 1, clip=case.clip + 1))
        with kept("load_training", RANDOM):
            load(subject, other, path)
    for key in ("gradient_accumulation_steps", "max_grad_norm", "run_optimizer", "calibrate"):
        found, wanted = getattr(other.training, key), getattr(run.training, key)
        require(found == wanted, f"load_training: {key} is {found!r} after loading: expected {wanted!r}")


OTHERS = ("another optimiser", "another scheduler", "other groups", "another rank", "half of a file", "a byte changed")


@clause(
    "CKP-RESUME-REFUSED",
    sentence="""load_training refuses a run with another optimiser, scheduler, parameter grouping or shape, and a
    damaged file. A refused call leaves parameters, gradients, optimiser, scheduler and random states unchanged.""",
    cases=RUNS.narrowed(how=OTHERS, scheduler=("cosine",), optimizer=("adamw", "momentum")),
    dtypes=ONE,
    needs=NEEDS,
)
def test_another_run_is_refused(subject: Subject, case: RunCase) -> None:
    with folder() as path:
        save(subject, Run(subject, case).go(case.cut), path, case.cut)
        other = Run(subject, _other(case))
        if case.how == "other groups":
            other.optimizer.param_groups[0]["params"].append(other.optimizer.param_groups[1]["params"].pop())
        for file in sorted(Path(path).iterdir()):
            data = file.read_bytes()
            if case.how == "half of a file":
                file.write_bytes(data[: len(data) // 2])
            if case.how == "a byte changed":  # a byte of the last tensor's values, or of the text
                file.write_bytes(data[:-3] + bytes([data[-3] ^ 0x40]) + data[-2:])
        other.go(2)
        expected, settings = other.state(), taken(RANDOM)
        error = raised(lambda: subject.target.load_training(other.training, str(path)))
        require(isinstance(error, Exception), f"load_training of {case.how} raised {error!r}: expected an error")
        require_state(other, expected, f"load_training refused {case.how}")
        drawn = changes(settings)
        require(not drawn, f"load_training refused {case.how}, and changed {', '.join(drawn)}")


def _other(case: RunCase) -> RunCase:
    if case.how == "another optimiser":
        return dataclasses.replace(case, optimizer="momentum" if case.optimizer == "adamw" else "adamw")
    changed: dict[str, Any] = {"another scheduler": {"scheduler": "step"}, "another rank": {"rank": case.rank + 1}}
    return dataclasses.replace(case, **changed.get(case.how, {}))


@clause(
    "CKP-RESUME-WHOLE",
    sentence="""save_training that fails for lack of disk space raises an error and leaves the previously saved run
    bit for bit, which still loads.""",
    cases=RUNS,
    dtypes=ONE,
    needs=NEEDS,
    weight=0.34,
)
def test_failed_save_of_a_run(subject: Subject, case: RunCase) -> None:
    with folder() as path:
        run = Run(subject, case).go(case.cut)
        save(subject, run, path, case.cut)
        before, at_cut = {p.name: p.read_bytes() for p in Path(path).iterdir()}, run.state()
        run.go(CALLS)
        with files_up_to(max(map(len, before.values())) // 2):
            error = raised(lambda: subject.target.save_training(run.training, str(path), CALLS))
        require(isinstance(error, Exception), f"save_training onto a full disk raised {error!r}: expected an error")
        for name, data in before.items():
            now = Path(path, name).read_bytes() if Path(path, name).is_file() else b""
            require(now == data, f"save_training: {name} is no longer what it was before a save that failed")
        resumed = Run(subject, case)
        found = load(subject, resumed, path)
    require(found == case.cut, f"load_training returned {found!r}: expected {case.cut}")
    require_state(resumed, at_cut, "load_training, loaded after a save that failed")


@clause(
    "CKP-RESUME-FORMAT",
    sentence="""save_training writes JSON and safetensors files only, never a pickle, and saving the same run again
    gives the same bytes.""",
    cases=RUNS,
    dtypes=ONE,
    needs=NEEDS,
    weight=0.5,
)
def test_format_of_a_run(subject: Subject, case: RunCase) -> None:
    run = Run(subject, case).go(case.cut)
    first: dict[str, bytes] = {}
    for turn in range(6):
        with folder() as path:
            save(subject, run, path, case.cut)
            files = sorted(Path(path).rglob("*"))
            require(bool(files), "save_training wrote nothing")
            for file in files:
                data = file.read_bytes() if file.is_file() else b""
                require(file.is_dir() or _is_json(data), f"save_training: {file.name} is neither JSON nor safetensors")
                require(
                    first.setdefault(file.name, data) == data,
                    f"save_training: saved {turn + 1} times, {file.name} has other bytes",
                )


def _is_json(data: bytes) -> bool:
    """Whether a file is JSON, or begins with the length of a JSON header and the header, as safetensors files do."""
    size = int.from_bytes(data[:8], "little")
    for text in (data, data[8 : 8 + size]):
        try:
            return isinstance(json.loads(text), dict | list)
        except ValueError:
            continue
    return False
