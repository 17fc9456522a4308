"""A trial: the judgement of one clause on one subject and dtype of the target."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from conformance.judgement.result import (
    ANY_DTYPE,
    CRASHED,
    FAIL,
    INCONCLUSIVE,
    PASS,
    UNSUPPORTED,
    Result,
    without_addresses,
)
from conformance.report.rerun_line import rerun_line
from conformance.report.trial_keys import Key
from conformance.reproducer.reproducer import script
from conformance.run.case_search import Examination
from conformance.run.profiles import Profile
from conformance.run.selection import Selection
from conformance.run.worker_status import Watch
from conformance.specification.clause import SHOULD, Clause, load_all
from conformance.target.fault import raised_by_target
from conformance.target.subject import Subject
from conformance.target.target import Target


@dataclass
class Trial:
    """One clause on one subject and dtype.

    Attributes:
        declared: whether the target declares the dtype; otherwise the trial only checks that the target refuses it.
        deviation: the target's reason for a declared deviation from the clause; None without one.
        watch: records the trial's state on disk.   reproduces: whether to write a script for a failure.
        whole: whether the run leaves out a dtype of the clause, whose cases this trial takes over.
        earlier: the trials of the clause before this one. The script of the first that fails is the one that is kept.
        result, reproducer: set by `examine`.
    """

    clause: Clause
    subject: Subject
    dtype: str
    target: str
    profile: Profile
    declared: bool = True
    deviation: str | None = None
    watch: Watch | None = None
    reproduces: bool = False
    whole: bool = False
    earlier: list[Trial] = field(default_factory=list, compare=False, repr=False)
    result: Result | None = field(default=None, compare=False)
    reproducer: str | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        """The label of the trial in pytest; `trial_keys.key_of` reads the key from it."""
        return f"{self.clause.id}-{self.subject.name}-{self.dtype}"

    @property
    def key(self) -> Key:
        """The clause's id, the subject's name and the dtype."""
        return Key(self.clause.id, self.subject.name, self.dtype)

    @property
    def drawn_dtype(self) -> str:
        """The dtype of the trial's cases; empty for a clause without dtypes."""
        return "" if self.dtype == ANY_DTYPE else self.dtype

    def examine(self) -> Result:
        """Judge the trial. If it fails, also write the script that reproduces the failure."""
        torch.set_num_threads(1)  # so that sums, and thereby worst ratios, are the same in every process
        examination = Examination(self.clause, self.subject, self.dtype, self.profile, whole=self.whole)
        if self.watch is not None:
            examination.on_case = self.watch.note
        with self.watch.over() if self.watch else nullcontext(), counted_launches() as launches:
            self.result = examination.run() if self.declared else examination.probe()
            self.result.message = self.result.message and without_addresses(self.result.message)
            is_first = not any(other.reproducer for other in self.earlier)
            if self.reproduces and is_first and self.result.status == FAIL and self.result.case is not None:
                self.reproducer = self._script(self.result)
        self.result.launches = launches[0]
        return self.result

    def _script(self, result: Result) -> str | None:
        """The script that reproduces a failure; None where the target's own code keeps it from being written."""
        try:
            return script(self.clause, self.subject, self.target, result)
        except Exception as error:
            if raised_by_target(error):
                return None
            raise

    def run(self) -> None:
        """Judge the trial as a pytest test, which is skipped if unsupported and xfailed if the failure is expected."""
        import pytest

        result = self.examine()
        title = f"{result.clause} {result.subject} {result.dtype}: {result.status}"
        text = f"{title}\n{describe(result, self.target)}"
        if result.status == UNSUPPORTED:
            pytest.skip(result.message or f"{self.dtype} is not among the target's dtypes")
        elif result.status != PASS and self.deviation is not None:
            pytest.xfail(f"declared deviation: {self.deviation}")
        elif result.status != PASS and self.clause.level == SHOULD:
            pytest.xfail(f"SHOULD: {text}")
        elif result.status in (FAIL, CRASHED, INCONCLUSIVE):
            pytest.fail(text, pytrace=False)


def describe(result: Result, target: str) -> str:
    """The message of a result, its case, and the command that reruns the case, as lines."""
    lines = [result.message or ""]
    if result.case is not None:
        again = rerun_line(target, result.clause, result.subject, result.case, result.device, result.lane)
        lines += [f"case     {result.case}", f"rerun    {again}"]
    return "\n".join(lines)


def trials(
    clause: Clause,
    target: Target,
    selection: Selection,
    watch: Watch | None = None,
    *,
    reproduces: bool = False,
) -> list[Trial]:
    """The trials of one clause: one for each subject in the chosen lane and each chosen dtype."""
    dtypes = clause.dtypes or (ANY_DTYPE,)
    expected = target.deviations | dict(selection.deviations)
    judged = [d for d in dtypes if d == ANY_DTYPE or (d in target.dtypes and d in (selection.dtypes or dtypes))]
    found = [
        Trial(
            clause,
            subject,
            dtype,
            target.spec,
            selection.cases,
            declared=dtype == ANY_DTYPE or dtype in target.dtypes,
            deviation=expected.get(clause.id),
            watch=watch,
            reproduces=reproduces,
            whole=len(judged) < len(dtypes),
        )
        for subject in target.subjects(clause)
        if selection.lane in (None, "gpu") or subject.lane == selection.lane
        for dtype in dtypes
        if dtype == ANY_DTYPE or not selection.dtypes or dtype in selection.dtypes
    ]
    for number, trial in enumerate(found):
        trial.earlier = found[:number]
    return found


@lru_cache(maxsize=4)
def loaded(spec: str, device: str, groups: tuple[str, ...] | None = None) -> Target:
    """Import the target, once per process. The suite, or the given groups, are imported first, so they are complete.

    Raises:
        TargetError: if the target cannot be tested.
    """
    load_all(groups)
    # the first backward pass imports this module, for a second or more, which should not count against a trial
    importlib.import_module("torch.fx.experimental.symbolic_shapes")
    return Target.load(spec, device)


@contextmanager
def counted_launches() -> Iterator[list[int]]:
    """Count the kernels that Triton's interpreter runs inside the context. The list's only element is the count."""
    count = [0]
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
        # the target may import Triton only at its first launch, which must be counted too
        importlib.import_module("triton.runtime.interpreter")
    interpreter: Any = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None:
        yield count
        return
    original = interpreter.GridExecutor.__call__

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return original(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = counting
    try:
        yield count
    finally:
        interpreter.GridExecutor.__call__ = original
