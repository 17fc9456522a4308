"""The judgement of one golden adapter: what a loader made of it, as a cell of the table."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conformance.adapters.base_models import base_model
from conformance.adapters.golden_files import FOLDER
from conformance.adapters.loader import Loader
from conformance.adapters.recipe import Change, GoldenAdapter, contents, read_budget
from conformance.errors import suggestion
from conformance.judgement.judge import compare
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Violation
from conformance.numerics.formats import numbers

RIGHT, REFUSED, UNCLEAR, WRONG, MISSING = "right", "refused", "unclear error", "wrong", "missing"
FAILING = (UNCLEAR, WRONG)
LONGEST = 200  # characters of a warning
NO_REFUSAL = (LookupError, AttributeError)  # a loader that stumbles refuses nothing


@dataclass(frozen=True)
class Cell:
    """What a loader made of a golden adapter.

    Attributes:
        status: right; refused, with a clear error; unclear error; wrong, without an error; missing: not asked.
        ratio: the worst error ÷ budget; None without a result, infinite for a wrong name or shape.
        message: the error, the worst element, or the reason.   warned: the first warning of a wrong result.
    """

    status: str
    ratio: float | None = None
    message: str = ""
    warned: str = ""

    def to_json(self) -> dict[str, Any]:
        """The cell as JSON holds it, where an infinite ratio is null."""
        ratio = None if self.ratio is None or np.isinf(self.ratio) else float(f"{self.ratio:.3g}")
        return asdict(self) | {"ratio": ratio}


def judged(loader: Loader, adapter: GoldenAdapter) -> Cell:
    """Load a golden adapter into its base model, and compare every parameter's change with the exact one."""
    if adapter.name in loader.absent:
        return Cell(MISSING, message=loader.absent[adapter.name])
    model = base_model(adapter.base)
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    with _quiet() as caught, torch.random.fork_rng(devices=[]):
        try:
            got = loader.changes(model, FOLDER / adapter.name)
        except Exception as error:  # noqa: BLE001  (what a loader raises is what is judged)
            return _refusal(adapter, error)
    try:
        ratio = _compared(adapter, got, sizes)
    except Violation as violation:
        told = [str(warning.message).splitlines()[0] for warning in caught if warning.category is UserWarning]
        worst = float("inf") if violation.ratio is None else violation.ratio
        return Cell(WRONG, worst, f"{adapter.name}: {violation}", told[0][:LONGEST] if told else "")
    return Cell(RIGHT, ratio)


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """The warnings of a loader; its prints and progress bars are not shown."""
    with (
        warnings.catch_warnings(record=True) as caught,
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("always")
        yield caught


def _refusal(adapter: GoldenAdapter, error: Exception) -> Cell:
    """A clear refusal names what it does not take; an adapter that must be taken cannot be refused."""
    said = str(error).replace(str(FOLDER / adapter.name), "the adapter")  # whose path may have the word
    text = f"{type(error).__name__}: {' '.join(said.split())}"
    clear = not isinstance(error, NO_REFUSAL) and any(word in text.lower() for word in adapter.words)
    if clear:
        return Cell(REFUSED, message=text)
    wanted = f"expected {' or '.join(adapter.words)} in it" if adapter.words else "every loader must take it"
    return Cell(UNCLEAR, message=f"{adapter.name}: {text} ({wanted})")


def _compared(adapter: GoldenAdapter, got: Any, sizes: Mapping[str, tuple[int, ...]]) -> float:
    """The worst error ÷ budget over all parameters; a parameter that the loader leaves out does not change.

    Raises:
        Violation: for the parameter with the largest error, or one of another name, type or shape.
    """
    if not isinstance(got, Mapping):
        raise Violation(f"load_adapter_deltas returned a {type(got).__name__}: expected a dict of tensors by parameter")
    for name, tensor in got.items():
        if name not in sizes:
            raise Violation(f"{name!r} is no parameter of the model: {suggestion(str(name), list(sizes))}")
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != sizes[name]:
            found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise Violation(f"{name} is {found}: expected {list(sizes[name])}, the shape of the parameter")
    changes = contents(adapter)[1]
    ratios, worst = [0.0], None
    for name, shape in sizes.items():
        exact = changes.get(name) or Change(np.zeros(shape), read_budget(np.zeros(shape)))
        value = numbers(got[name]) if name in got else np.zeros(shape)
        try:
            ratios.append(compare(value, Expected(name, exact.value, exact.budget, torch.float32, certified=False)))
        except Violation as violation:
            if worst is None or (violation.ratio or 0) > (worst.ratio or 0):
                worst = violation
    if worst is not None:
        raise worst
    return max(ratios)
