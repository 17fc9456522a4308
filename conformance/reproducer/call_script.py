"""The script of a check that keeps the code which it has run on the target: the same calls, and the last comparison."""

from __future__ import annotations

import pprint
import re
import sys
import textwrap
from typing import Any

import torch

from conformance.isolation import process_state
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.judgement.recording import Recording, recording
from conformance.judgement.result import Result
from conformance.numerics.formats import Array
from conformance.reproducer.check_script import importing
from conformance.specification.clause import Clause
from conformance.target.check_case import check_case
from conformance.target.subject import Subject

MODULES = {
    "copy": "import copy",
    "pickle": "import pickle",
    "shutil": "import shutil",
    "tempfile": "import tempfile",
    "Path": "from pathlib import Path",
    "ThreadPoolExecutor": "from concurrent.futures import ThreadPoolExecutor",
    "nn": "from torch import nn",
    "reference": "import reference",
    "parametrize": "from torch.nn.utils import parametrize",
    "checkpoint": "from torch.utils.checkpoint import checkpoint",
    "create_selective_checkpoint_contexts": "from torch.utils.checkpoint import create_selective_checkpoint_contexts",
}


def call_script(clause: Clause, subject: Subject, target: str, result: Result, header: str) -> str | None:
    """A script that shows the defect on the target and none on `reference`; None if no script does.

    The first one tried leaves out the judgements between the calls.
    """
    recorded = _recorded(clause, subject, result)
    if recorded is None or recorded.calls is None:
        return None
    calls = recorded.calls
    comparison = tuple(_comparison_of(recorded))
    last = max((n for n, (_, _, judges) in enumerate(calls.lines) if not judges), default=0)
    short = [line for n, line in enumerate(calls.lines) if not line[2] or n > last]
    for lines in (short, calls.lines):
        body = [part for code, given, _ in lines for part in (*map(_assigned, given.items()), code) if part]
        text, right = (_text(calls.setup, body, subject, name, header, comparison) for name in (target, "reference"))
        if _shows_defect(text) and not _shows_defect(right):
            return text
    return None


def _recorded(clause: Clause, subject: Subject, result: Result) -> Recording | None:
    if result.case is None:
        return None
    with recording() as recorded:
        try:
            check_case(clause, subject, clause.cases.case_type.parse(result.case))
        except Violation:
            return recorded
        except (Inconclusive, Refused):
            return None
    return None


def _shows_defect(text: str) -> bool:
    before, path = process_state.taken(process_state.RESTORED), list(sys.path)
    space: dict[str, Any] = {"__name__": "reproducer"}
    try:
        exec(compile(text, "<reproducer>", "exec"), space)
        return space["wrong"]() is not None
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  (an exception of the target shows the defect too)
        return "wrong" in space
    finally:
        sys.path[:] = path
        process_state.restore(before)  # a script that ends in an autocast region leaves it open


def _comparison_of(recorded: Recording) -> list[str]:
    """The lines that compare what was asked last with the recorded value."""
    calls, expected = recorded.calls, recorded.expected
    assert calls is not None
    if calls.said:
        return [f"if not ({calls.asked}):", f"    return {calls.said!r}", "return None"]
    if not calls.asked or expected is None:
        return ["return None"]
    budget = "None  # equality" if expected.budget is None else _literal(expected.budget)
    values = [f"got = {calls.asked}", f"want = {_literal(expected.value)}", f"budget = {budget}"]
    return [line for value in values for line in value.splitlines()] + _comparison(expected)


def _literal(values: Array) -> str:
    shape = "" if values.size else f".reshape({tuple(map(int, values.shape))})"
    return f"torch.tensor({pprint.pformat(values.tolist(), width=110, compact=True)}, dtype=torch.float64){shape}"


def _comparison(expected: Expected) -> list[str]:
    shape, name = list(expected.value.shape), expected.name
    allowed = "same" if expected.budget is None else "same | ((got - want).abs() <= budget)"
    return [
        f"if got is None or list(got.shape) != {shape} or got.dtype != {expected.dtype}:",
        "    seen = None if got is None else (list(got.shape), got.dtype)",
        f'    return f"{name} is {{seen}}: expected {shape} {expected.dtype}"',
        "got = got.detach().double().cpu()",
        "same = (got == want) | (got.isnan() & want.isnan())",
        f"bad = ~({allowed})",
        "if not bad.any():",
        "    return None",
        "at = tuple(bad.nonzero()[0].tolist())",
        'count = f"{int(bad.sum())} of {bad.numel()} wrong"',
        f'return f"{name}{{list(at)}}: got {{got[at]}}, want {{want[at]}}; {{count}}"',
    ]


def _text(setup: str, body: list[str], subject: Subject, target: str, header: str, comparison: tuple[str, ...]) -> str:
    code = "\n".join(body)
    definitions = _needed(re.split(r"\n\n\n", setup.strip("\n")), code)
    used = code + "\n".join(definitions)
    found = [line for name, line in MODULES.items() if re.search(rf"\b{name}\b", used)]
    interpreted = ["import os", 'os.environ["TRITON_INTERPRET"] = "1"'] if subject.lane == "interpreter" else []
    lines = [
        f'"""{header}\n"""',
        "",
        "import sys",
        *interpreted,
        *found[: sum("torch" not in line for line in found)],
        "",
        "import torch",
        *[line for line in found if "torch" in line],
        "",
        'sys.path.insert(0, "")  # the current folder',
        *importing(target),
        'nan, inf = float("nan"), float("inf")',
        "",
        *(f"\n{part}\n" for part in definitions),
        "",
        "def wrong():",
        '    """The error, or None if there is none."""',
        '    torch.set_deterministic_debug_mode("warn")  # fills torch.empty with NaN',
        "    optimiser, regions = None, []",
        textwrap.indent("\n".join((*body, *comparison)), "    "),
        "",
        "",
        'if __name__ == "__main__":',
        "    problem = wrong()",
        '    print(problem or "this case is right")',
        "    sys.exit(1 if problem else 0)",
    ]
    return "\n".join(lines) + "\n"


def _needed(definitions: list[str], code: str) -> list[str]:
    """The definitions that the code uses, and those that these use."""
    needed: list[str] = []
    while found := [part for part in definitions if part not in needed and _is_used(part, "\n".join([code, *needed]))]:
        needed += found
    return [part for part in definitions if part in needed]


def _is_used(definition: str, code: str) -> bool:
    name = re.match(r"(?:def|class) (\w+)", definition)
    return name is None or re.search(rf"\b{name[1]}\b", code) is not None


def _assigned(given: tuple[str, Any]) -> str:
    """The assignment of a variable that the code was given."""
    name, value = given
    if not isinstance(value, torch.Tensor):
        return f"{name} = {value!r}"
    grad = ".requires_grad_(True)" if value.requires_grad else ""
    return f"{name} = torch.tensor({_short(value.detach().tolist(), value.dtype)}, dtype={value.dtype}){grad}"


def _short(numbers: Any, dtype: torch.dtype) -> str:
    """Nested lists of numbers, each with as few digits as the dtype needs."""
    if isinstance(numbers, list):
        return f"[{', '.join(_short(number, dtype) for number in numbers)}]"
    texts = (f"{numbers:.{digits}g}" for digits in range(1, 18))
    same = (text for text in texts if torch.tensor(float(text), dtype=dtype).item() == numbers)
    return next(same, repr(numbers))
