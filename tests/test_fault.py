"""Exceptions of any type, from any call of a target, are failures of the target; those of the suite are the suite's."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import reference
from conformance.errors import UsageError
from conformance.isolation.monkeypatches import PRISTINE
from conformance.judgement.outcomes import Refused, Violation
from conformance.run import plan
from conformance.run.case_search import Examination
from conformance.run.profiles import Profile
from conformance.run.selection import Selection
from conformance.specification.clause import Clause, load_all
from conformance.target.check_case import check_case
from conformance.target.fault import raised_by_target
from conformance.target.target import Target

ONE = Profile("one", volume=1, interpreted=1, shrinks=0)


class Panic(BaseException):
    """What a library in Rust raises."""


TYPES = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    OSError,
    StopIteration,
    SystemExit,
    Panic,
)


class Raising:
    """The exception type that the targets below raise, and at which entry point."""

    kind: type[BaseException] = ValueError
    at = ""


def may_raise(at: str) -> None:
    if at == Raising.at:
        raise Raising.kind("out of order")


@contextmanager
def raising(at: str, kind: type[BaseException]) -> Iterator[None]:
    Raising.at, Raising.kind = at, kind
    yield
    Raising.at = ""


class Scaled(torch.autograd.Function):
    """A product with an adapter; its gradient is a function of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        may_raise("backward")
        return Derivative.apply(g, *ctx.saved_tensors)  # type: ignore[no-untyped-call]


class Derivative(torch.autograd.Function):
    """The gradient of a product."""

    @staticmethod
    def forward(ctx: Any, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> Any:
        return g @ weight, g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])

    @staticmethod
    def backward(ctx: Any, *g: torch.Tensor) -> Any:
        may_raise("double backward")
        raise NotImplementedError


def lora_linear(x: Any, weight: Any, bias: Any, lora_A: Any, lora_B: Any, scale: float) -> torch.Tensor:
    may_raise("call")
    down: Any = Scaled.apply(x, lora_A)  # type: ignore[no-untyped-call]
    y: torch.Tensor = torch.nn.functional.linear(x, weight, bias) + scale * torch.nn.functional.linear(down, lora_B)
    return y


class LinearLoRA(reference.LinearLoRA):
    """A right layer that raises where it is told to."""

    def __init__(self, *args: Any, **options: Any) -> None:
        may_raise("constructor")
        super().__init__(*args, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        may_raise("forward")
        return super().forward(x)

    def __getattribute__(self, name: str) -> Any:
        may_raise(f"attribute {name}")
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        may_raise(f"attribute {name}")  # Python comes here after an AttributeError
        return super().__getattr__(name)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        may_raise("state_dict")
        return super().state_dict(*args, **options)

    def merge(self) -> None:
        may_raise("merge")
        super().merge()


TARGET = Target.of(SimpleNamespace(lora_linear=lora_linear, LinearLoRA=LinearLoRA), "raising")
ENTRIES = {
    "call": "LIN-FWD",
    "backward": "LIN-BWD-DX",
    "constructor": "LAY-FWD",
    "forward": "LAY-FWD-LEAD",
    "attribute lora_A": "LAY-INIT",
    "attribute scale": "LAY-SCALING",
    "attribute weight": "LAY-FREEZE",
    "attribute lora_magnitude": "DORA-INIT",
    "state_dict": "LAY-STATE-NAMES",
    "merge": "MRG-FWD",
}


def one_of(name: str, target: Target = TARGET) -> Examination:
    clause = load_all()[name]
    (subject,) = target.subjects(clause)
    return Examination(clause, subject, "float32", ONE)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("at", ENTRIES)
def test_an_exception_of_the_target_fails_the_clause(at: str, kind: type[BaseException]) -> None:
    with raising(at, kind):
        result = one_of(ENTRIES[at]).run()
    assert result.status == "fail", result
    assert f"raised {kind.__name__}: " in str(result.message)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_a_double_backward_may_raise_any_exception(kind: type[BaseException]) -> None:
    with raising("double backward", kind):
        result = one_of("LIN-BWD-DOUBLE").run()
    assert result.status == ("pass" if issubclass(kind, Exception) else "fail"), result


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_a_name_that_raises_is_a_usage_error(kind: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lazy")
    vars(module)["lora_linear"] = lora_linear

    def raises(name: str) -> Any:
        raise kind(f"no {name}")

    vars(module)["__getattr__"] = raises
    monkeypatch.setitem(sys.modules, "lazy", module)
    if kind is AttributeError:  # the module has no such name
        assert plan.plan(Selection.of("lazy", clauses=["LIN-FWD"])).keys
        return
    with pytest.raises(UsageError, match=f"'lazy' cannot be looked at: .* raised {kind.__name__}: .*no "):
        plan.plan(Selection.of("lazy"))


def test_a_declaration_on_which_the_suite_stumbles_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("numbered")
    vars(module).update(lora_linear=lora_linear, CONFORMANCE={"deviations": {1: "not a name"}})
    monkeypatch.setitem(sys.modules, "numbered", module)
    with pytest.raises(UsageError, match=r"'numbered' cannot be looked at: .* raised AttributeError: 'int' object"):
        plan.plan(Selection.of("numbered", profile="quick"))


def judged_by(check: Callable[[Any, Any], None], target: Target = TARGET) -> None:
    """Judge a case by a check that raises, as a clause of the suite does."""
    clause = load_all()["LIN-FWD"]
    (subject,) = target.subjects(clause)
    case = dataclasses.replace(clause.cases.draw(0, clause.id, 0, "float32", clause.dtypes), bias=True)
    own = Clause(clause.id, clause.sentence, check, clause.cases)  # type: ignore[arg-type]
    check_case(own, subject, case)


def test_an_exception_that_reference_raises_too_is_the_suites() -> None:
    def check(subject: Any, case: Any) -> None:
        subject.build(subject.operands(case)).forward().no_such_attribute  # noqa: B018

    with pytest.raises(AttributeError, match="no_such_attribute"):
        judged_by(check)


def test_an_exception_of_the_suite_that_reference_does_not_raise_is_the_targets() -> None:
    def check(subject: Any, case: Any) -> None:
        torch.zeros(2).copy_(subject.thing(*subject.operands(case).placed))

    def named(*_: Any) -> torch.Tensor:
        return torch.zeros(2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "lora_linear", named)
        wide = Target.of(SimpleNamespace(lora_linear=lambda *_: torch.zeros(3)), "wide")
        with pytest.raises(Violation) as raised:
            judged_by(check, wide)
    first, second = str(raised.value).splitlines()
    call = "torch.zeros(2).copy_(subject.thing(*subject.operands(case).placed))"
    assert first.startswith(f"{call} raised RuntimeError: The size of tensor a (2)")
    assert second.startswith(f"at       {__file__}:")
    assert raised.value.__cause__ is not None


def test_a_targets_monkeypatch_does_not_keep_reference_from_showing_the_suites_fault() -> None:
    def patching(x: Any, weight: Any, *_: Any, **__: Any) -> torch.Tensor:
        torch.nn.functional.linear = broken  # type: ignore[assignment]
        y: torch.Tensor = x @ weight.T
        return y

    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise OSError("patched")

    def check(subject: Any, case: Any) -> None:
        subject.build(subject.operands(case)).forward()
        raise LookupError("the suite's own")

    with pytest.raises(LookupError, match="the suite's own"):
        judged_by(check, Target.of(SimpleNamespace(lora_linear=patching), "patching"))
    PRISTINE.begin()


def test_a_notimplementederror_is_a_refusal() -> None:
    def calls(subject: Any, case: Any) -> None:
        subject.thing(*subject.operands(case).placed.values())

    with raising("call", NotImplementedError), pytest.raises(Refused, match="raised NotImplementedError: out of order"):
        judged_by(calls)


def test_the_innermost_code_outside_libraries_decides() -> None:
    with pytest.raises(ZeroDivisionError) as own:
        sorted([1], key=lambda n: n // 0)
    assert raised_by_target(own.value)
    assert not raised_by_target(own.value, own.traceback[-1].frame.raw.f_code)
    with pytest.raises(RuntimeError) as library:
        torch.zeros(2).backward()
    assert raised_by_target(library.value)
