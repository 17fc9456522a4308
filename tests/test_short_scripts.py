"""Short scripts: a failing check as straight torch code that shows the defect, and shows none on the reference."""

from __future__ import annotations

import ast
import linecache
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import reference
from conformance.judgement.result import Result
from conformance.reproducer.hooked_code import TAPE, hooked
from conformance.reproducer.judged_calls import RECORDERS
from conformance.reproducer.literals import Leaf, Unsayable, tensor_literal
from conformance.reproducer.reduction import BROKEN, DEFECT, RIGHT, needed, said
from conformance.reproducer.reproducer import script
from conformance.reproducer.session_source import session_source
from conformance.reproducer.short_script import short_script
from conformance.reproducer.steps import Step
from conformance.reproducer.tape import Tape
from conformance.run.profiles import PROFILES
from conformance.target.check_case import check_case
from conformance.target.subject import Subject
from conformance.target.target import Target
from tests.support.twins import CLAUSES, REGISTRY, begun, own_failure, reset

NUMERIC, OTHER = 40, 80  # lines at most


def written(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The script of a known-bad twin, which imports it from the module `twin`."""
    bad = REGISTRY[name]
    monkeypatch.setitem(sys.modules, "twin", bad.target)
    result = own_failure(bad, PROFILES["quick"])
    assert result is not None
    with begun(bad) as target:
        subject = next(each for each in target.subjects(CLAUSES[bad.clause]) if each.name == result.subject)
        reset(bad)
        text = short_script(CLAUSES[bad.clause], subject, "twin", result)
    assert text is not None
    return text


def imported(text: str) -> set[str]:
    """The top-level packages that a script imports."""
    nodes = list(ast.walk(ast.parse(text)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("name", "lines", "line"),
    [
        ("LAY-BWD-DX__LosesTheBaseInDX", NUMERIC, "y.backward(g)"),
        ("LIN-FWD-NONFINITE__SpreadsNaNOverRows", NUMERIC, "lora_linear("),
        ("LIN-REL-SCALE__ClipsTheScale", NUMERIC, "expected = lora_linear("),
        ("LIN-SIDE-GLOBAL__SeedsPython", NUMERIC, "if random.getstate() != before:"),
        ("MOD-BIAS__DetachesTheBias", NUMERIC, "got = value.grad"),
        ("HYB-NO-GRADIENT__AlwaysKeepsAGraph", OTHER, "if layer(x.detach()).requires_grad:"),
        ("CFG-DEFAULTS__DefaultsToAlphaSixteen", OTHER, "config = PeftConfig()"),
        ("LIN-MEM-INPUTS__ScalesGInPlace", NUMERIC, "if not torch.equal(g, g_before):"),
        ("CFG-TYPE__ReadsNumbersFromText", OTHER, "PeftConfig.from_dict({'dim': '8'})"),
        ("MOD-PATTERN-RUN__MatchesAnywhere", OTHER, "wildcard_match('m*del.0', '1model.0')"),
        ("MOD-HOOKS__ForgetsWhichHooksTakeKeywords", OTHER, "events.append('keywords' * (len(given) == 4))"),
        ("TRN-DIVIDE__ForgetsToDivide", OTHER, "layer = LoraTraining(model)"),
        ("CKP-LAYOUT__SavesTransposed", OTHER, "save_adapter(model, config, folder)"),
        ("FHE-DISABLE__AddsTheBiasTwice", OTHER, "compile_model("),
        ("QNT-BWD-DX__LosesTheBaseInDX", OTHER, "value = packed_linear(base, 'nf4')"),
        ("MOD-COUNT__ReturnsNothing", OTHER, "value = apply_lora_to_linear_modules(model, config)"),
    ],
)
def test_a_short_script_shows_the_defect_and_none_on_the_reference(
    name: str, lines: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, clause = written(name, monkeypatch), REGISTRY[name].clause
    assert line in text
    assert text.count("\n") <= lines
    assert imported(text) == {"torch", "twin"}
    assert said(text, clause).kind == DEFECT
    assert said(text.replace("from twin import", "from reference import"), clause).kind == RIGHT


def test_the_sentence_names_the_element_and_what_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written("LAY-BWD-DX__LosesTheBaseInDX", monkeypatch)
    with pytest.raises(SystemExit) as ended:
        exec(text, {})
    assert ended.value.code == "LAY-BWD-DX: dX[0, 0]: got 1, expected -1, bound 0"


def test_a_script_of_a_call_that_raises_says_what_it_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def lora_linear(*_: Any, **__: Any) -> None:
        raise KeyError("lora")

    target = ModuleType("raising_target")
    vars(target).update(lora_linear=lora_linear)
    lora_linear.__module__ = target.__name__
    monkeypatch.setitem(sys.modules, target.__name__, target)
    clause = CLAUSES["LIN-FWD"]
    subject = Target.of(target).subjects(clause)[0]
    result = Result(clause.id, subject.name, "float32", case="m=1 k=1 n=1 r=1")
    text = short_script(clause, subject, target.__name__, result) or ""
    with pytest.raises(SystemExit, match=r"LIN-FWD: .* raised KeyError: 'lora'"):
        exec(text, {})


def test_a_failure_that_cannot_be_said_gets_the_long_script() -> None:
    clause = CLAUSES["LIN-FWD"]
    subject = Target.of(reference).subjects(clause)[0]
    result = Result(clause.id, subject.name, "float32", case="m=1 k=1 n=1 r=1", message="nothing")
    assert short_script(clause, subject, "reference", result) is None  # the reference does not fail
    assert "def main() -> int:" in (script(clause, subject, "reference", result) or "")
    assert script(clause, subject, "loraspec_object_1", result) is None  # no other process could import it


LIBRARY = """
import torch
from torch import nn


class Adapted(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(rank, linear.in_features).to(linear.weight))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank).to(linear.weight))
        self.scaling = alpha / rank

    def forward(self, x):
        with torch.no_grad():
            base = self.linear(x)
        return base + self.scaling * (x @ self.down.T) @ self.up.T
"""
WRAPPER = """
from conformance.targets.wrapped_layer import WrappedLayer, as_module
from adapted_library import Adapted


class LinearLoRA(WrappedLayer):
    def wrap(self, orig_linear, dim, alpha, dropout, **options):
        return Adapted(orig_linear, rank=dim, alpha=alpha)

    weight = property(lambda self: self.wrapped.linear.weight)
    bias = property(lambda self: self.wrapped.linear.bias)
    lora_A = property(lambda self: as_module(self.wrapped.down))
    lora_B = property(lambda self: as_module(self.wrapped.up))
"""


def test_the_script_of_a_wrapper_calls_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapted_library.py").write_text(LIBRARY)
    (tmp_path / "wrapping_target.py").write_text(WRAPPER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    clause = CLAUSES["LAY-BWD-DX"]
    subject = Target.load("wrapping_target", "cpu").subjects(clause)[0]
    result = Result(clause.id, subject.name, "float32", case="m=1 k=1 n=1 r=1")
    text = short_script(clause, subject, "wrapping_target", result) or ""
    assert "layer = Adapted(base, rank=1, alpha=1)" in text
    assert imported(text) == {"torch", "adapted_library"}
    assert text.count("\n") <= NUMERIC
    assert 'sys.path.insert(0, "")' in text
    assert said(text, clause.id).kind == DEFECT
    mended = LIBRARY.replace("with torch.no_grad()", "with nn.utils.parametrize.cached()")  # a region without effect
    exec("import torch.nn.utils.parametrize\n" + mended, vars(sys.modules["adapted_library"]))
    assert said(text, clause.id).kind == RIGHT


def test_the_source_of_the_session_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    text = "import torch.nn as nn\nfrom math import tau\nTURN = 2 * tau\ndef half(x):\n    return x / TURN\n"
    text += "class Mine(nn.Module):\n    def forward(self, x):\n        return half(x)\n"
    linecache.cache["<cell>"] = (len(text), None, text.splitlines(keepends=True), "<cell>")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(main, "__file__", "<cell>", raising=False)
    exec(compile(text, "<cell>", "exec"), vars(main))
    imports, definitions = session_source(main.Mine)
    assert imports == ["from torch import nn"]
    assert [each.splitlines()[0] for each in definitions] == [
        f"TURN = {2 * math.tau}",
        "def half(x):",
        "class Mine(nn.Module):",
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_literal_gives_the_values_bit_for_bit(dtype: torch.dtype) -> None:
    drawn = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    for values in (drawn, torch.tensor([[-0.0, math.inf, 1e-7]], dtype=dtype), torch.zeros(0, 3, dtype=dtype)):
        found = eval(tensor_literal(values), {"torch": torch})
        assert found.dtype == dtype
        assert torch.equal(found, values)
        assert torch.equal(found.signbit(), values.signbit())


def test_a_large_tensor_has_no_literal() -> None:
    with pytest.raises(Unsayable, match="a tensor of 4096 elements"):
        _ = Leaf.of(torch.zeros(64, 64)).literal


def test_hooked_code_is_as_before_afterwards() -> None:
    clause = CLAUSES["LIN-FWD"]
    subject = Target.of(reference).subjects(clause)[0]
    module = sys.modules[clause.check.__module__]
    before, run = clause.check.__code__, Subject.build.__code__
    tape = Tape(subject, RECORDERS)
    with hooked(tape, clause.check):
        assert clause.check.__code__ is not before
        check_case(clause, subject, clause.cases.case_type.parse("m=1 k=1 n=1 r=1"))
    assert (clause.check.__code__, Subject.build.__code__) == (before, run)
    assert not hasattr(module, TAPE)
    calls = [ast.unparse(step.node) for step in tape.steps if step.node is not None and step.is_targets]
    assert len(calls) == 1
    assert calls[0].startswith("_target_lora_linear(")


def test_only_the_steps_that_matter_are_needed() -> None:
    def step(name: str, code: str, *, effect: bool = True) -> Step:
        return Step(name, ast.parse(code, mode="eval").body, effect=effect)

    steps = [
        step("_v0", "torch.ones(2)", effect=False),
        step("_v1", "_v0.mul_(2)"),  # changes what the root uses
        step("_v2", "torch.ones(3)", effect=False),
        step("_v3", "_v2.mul_(2)"),  # changes what nothing uses
    ]
    assert [each.name for each in needed(steps, [ast.parse("_v0.sum()")])] == ["_v0", "_v1"]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("raise SystemExit('LIN-FWD: wrong')", DEFECT),
        ("pass", RIGHT),
        ("1 / 0", BROKEN),
        ("raise SystemExit('another sentence')", BROKEN),
        ("this is no Python", BROKEN),
    ],
)
def test_what_a_script_says(text: str, outcome: str) -> None:
    assert said(text, "LIN-FWD").kind == outcome


def test_running_a_script_keeps_the_settings() -> None:
    before = torch.get_rng_state()
    said("import torch; torch.manual_seed(3); torch.set_default_dtype(torch.float64)", "LIN-FWD")
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), before)
