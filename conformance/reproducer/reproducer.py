"""Reproducers: a failing case as a script that needs torch and the target, but not the suite.

The shortest script consists of literal operands and one call of the target; `replay` writes all others.
"""

from __future__ import annotations

import base64
import math
import pprint
import sys
import textwrap
from typing import Any

import numpy as np
import torch

from conformance.cases.operands import Operands
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.judgement.recording import Recording, recording
from conformance.judgement.result import Result
from conformance.numerics.formats import Array
from conformance.reproducer.call_script import called
from conformance.reproducer.check_script import importing, replay
from conformance.reproducer.module_source import NoSource
from conformance.specification.clause import Clause
from conformance.target.check_case import check_case
from conformance.target.subject import Subject

LITERAL = 4096  # elements; larger operands are written in base64
SOURCES = {"y": "y", "dX": "x.grad", "dA": "lora_A.grad", "dB": "lora_B.grad", "dbias": "bias.grad"}

LAYER_SOURCES = {"dX": "x.grad", "dA": "down.grad", "dB": "up.grad", "dbias": "layer.bias.grad"}


def script(clause: Clause, subject: Subject, target: str, result: Result) -> str:
    """A script that exits with 1 while the defect is present and with 0 once it is fixed.

    If a single call on the case's operands shows the defect on the target, and no defect on `reference`, the script
    makes that call. Otherwise the script contains the whole check. It needs the suite only if the check has no source.
    """
    recorded = _recorded(clause, subject, result)
    if recorded is not None and recorded.calls is not None:
        header = _header(clause, target, result)
        for text, right in called(recorded, subject, (target, "reference"), header, tuple(_comparison_of(recorded))):
            if _shows_defect(text) and not _shows_defect(right):
                return text
    if recorded is not None and _stands_alone(recorded):
        text, right = (_standalone(clause, subject, t, result, recorded) for t in (target, "reference"))
        if _shows_defect(text) and not _shows_defect(right):
            return text
    try:
        return replay(clause, subject, target, result, _header(clause, target, result))
    except NoSource:
        return _through_suite(clause, target, result)


def _recorded(clause: Clause, subject: Subject, result: Result) -> Recording | None:
    if clause.group not in ("linear", "layer", "life") or result.case is None:
        return None
    case = clause.cases.case_type.parse(result.case)
    with recording() as recorded:
        try:
            check_case(clause, subject, case)
        except Violation:
            return recorded
        except (Inconclusive, Refused):
            return None
    return None


def _stands_alone(recorded: Recording) -> bool:
    operands, expected = recorded.operands, recorded.expected
    if operands is None or expected is None or expected.name not in SOURCES:
        return False
    case = operands.case
    return case.dropout == 0 and case.autocast == "off"


def _shows_defect(text: str) -> bool:
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    mode, path = torch.get_deterministic_debug_mode(), list(sys.path)
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
        torch.set_grad_enabled(grad)
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)


def _through_suite(clause: Clause, target: str, result: Result) -> str:
    words = ["rerun", f"{result.clause} {target} {result.subject} {result.case}"]
    if result.device != "cpu":
        words += ["--device", result.device]
    else:
        words += ["--lane", result.lane]
    return (
        f'"""{_header(clause, target, result)}\n\n'
        "The source of this check is not available, so the script runs the suite (pip install loraspec).\n"
        '"""\n\n'
        "import sys\n\n"
        "from conformance.cli import main\n\n"
        f"sys.exit(main({words!r}))\n"
    )


def _header(clause: Clause, target: str, result: Result) -> str:
    """The beginning of a script's docstring."""
    text = (
        f"{clause.id}: {clause.sentence}\n\n"
        f"Target {target}, {result.subject}, {result.dtype}, {result.device}; case {result.case}\n"
        "Exits with 1 while the defect is present and with 0 once it is fixed. The target must be importable.\n\n"
        f"When this script was written, the defect was:\n{textwrap.indent(result.message or '', '    ')}"
    ).replace("\\", "\\\\")
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return shown.replace('"""', '\\"\\"\\"').rstrip()


def _standalone(clause: Clause, subject: Subject, target: str, result: Result, recorded: Recording) -> str:
    operands, expected = recorded.operands, recorded.expected
    assert operands is not None
    assert expected is not None
    interpreted = ["import os"] if subject.lane == "interpreter" else []
    lines = [
        f'"""{_header(clause, target, result)}\n"""',
        "",
        *(["import base64"] if _is_large(operands, expected) else []),
        *interpreted,
        "import sys",
        "",
        'sys.path.insert(0, "")  # the current folder',
        *(['os.environ["TRITON_INTERPRET"] = "1"'] if interpreted else []),
        "",
        "import torch  # noqa: E402",
        "",
        *importing(target),
        'nan, inf = float("nan"), float("inf")',
        "",
        "",
        PLACED,
        "",
        *(_operand(name, operands, subject.device) for name in _used(subject, operands, expected)),
        f"want = {_literal(expected.value)}",
        f"budget = {'None  # equality' if expected.budget is None else _literal(expected.budget)}",
        "",
        "",
        "def wrong():",
        f'    """The error of {expected.name}, or None if it is right."""',
        *(f"    {line}" for line in _calls(subject, operands, expected, recorded)),
        *(f"    {line}" for line in _comparison(expected)),
        "",
        "",
        'if __name__ == "__main__":',
        "    problem = wrong()",
        f'    print(problem or "{clause.id}: this case is right")',
        "    sys.exit(1 if problem else 0)",
    ]
    return "\n".join(lines) + "\n"


PLACED = '''def placed(values, stride, dtype, device):
    """The values as a view with these strides, inside a larger buffer with canary values."""
    extent = sum((n - 1) * s for n, s in zip(values.shape, stride)) + 1 if values.numel() else 0
    canary = 2.0**15 if dtype.itemsize == 2 and device == "cpu" else nan
    buffer = torch.full((128 + extent,), canary, dtype=dtype)
    once = tuple(1 if s == 0 else n for n, s in zip(values.shape, stride))
    first = tuple(slice(0, n) for n in once)
    buffer.as_strided(once, stride, 64).copy_(values[first])
    return buffer.to(device).as_strided(values.shape, stride, 64)
'''


def _used(subject: Subject, operands: Operands, expected: Expected) -> list[str]:
    names = ["x", "weight", "bias", "lora_A", "lora_B", "g"]
    if not subject.has_base:
        names = [name for name in names if name not in ("weight", "bias")]
    if expected.name == "y":
        names.remove("g")
    return [name for name in names if name in operands.values]


def _operand(name: str, operands: Operands, device: str) -> str:
    tensor = operands.placed[name].tensor
    where = f"{tuple(tensor.stride())}, {tensor.dtype}, {device!r}"
    return f"{name} = placed({_literal(operands.values[name])}, {where})"


def _is_large(operands: Operands, expected: Expected) -> bool:
    return any(v.size > LITERAL for v in (*operands.values.values(), expected.value))


def _literal(values: Array) -> str:
    shape = tuple(int(n) for n in values.shape)
    if values.size > LITERAL:
        data = base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode()
        decoded = f'base64.b64decode("{data}")'
        return f"torch.frombuffer(bytearray({decoded}), dtype=torch.float64).reshape({shape})"
    numbers = pprint.pformat(values.tolist(), width=110, compact=True)
    reshaped = "" if values.size else f".reshape({shape})"
    return f"torch.tensor({numbers}, dtype=torch.float64){reshaped}"


def _calls(subject: Subject, operands: Operands, expected: Expected, recorded: Recording) -> list[str]:
    case = operands.case
    grad = expected.name != "y" or case.training
    lines = [
        'torch.set_deterministic_debug_mode("warn")  # fills torch.empty with NaN',
        f"torch.set_grad_enabled({grad})",
    ]
    lines += (
        _layer_call(subject, operands, recorded) if subject.is_layer else _function_call(subject, operands, recorded)
    )
    if expected.name != "y":
        lines.append("y.backward(g.to(y.dtype))")
        lines.append(f"got = {(LAYER_SOURCES if subject.is_layer else SOURCES)[expected.name]}")
    else:
        lines.append("got = y")
    return lines


def _function_call(subject: Subject, operands: Operands, recorded: Recording) -> list[str]:
    names = [name for name in recorded.needs if name in ("x", "lora_A", "lora_B")]
    fresh = [f"{name}.requires_grad_(True)" for name in names]
    scale = repr(float(operands.scale))
    if not subject.has_base:
        return [*fresh, f"y = target.{subject.name}.apply(x, lora_A, lora_B, {scale}, x.dtype)"]
    bias = "bias" if "bias" in operands.values else "None"
    return [*fresh, f"y = target.{subject.name}(x, weight, {bias}, lora_A, lora_B, {scale})"]


def _layer_call(subject: Subject, operands: Operands, recorded: Recording) -> list[str]:
    case = operands.case
    alpha = operands.scale * case.r
    options: dict[str, Any] = {
        "dim": case.r,
        "alpha": int(alpha) if math.isfinite(alpha) and float(alpha).is_integer() else alpha,
        **recorded.options,
    }
    if operands.adapter_dtype != operands.dtype:
        options["lora_dtype"] = operands.adapter_dtype
    biased = "bias" in operands.values
    lines = [f"base = torch.nn.Linear({case.k}, {case.n}, bias={biased}, device='meta', dtype={operands.dtype})"]
    lines.append("base.weight = torch.nn.Parameter(weight, requires_grad=False)")
    lines += ["base.bias = torch.nn.Parameter(bias, requires_grad=False)"] if biased else []
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    lines.append(f"layer = target.{subject.name}(base, {arguments})")
    lines.append(f"layer.train({case.training})")
    lines.append("down, up = (getattr(part, 'weight', part) for part in (layer.lora_A, layer.lora_B))")
    lines.append("with torch.no_grad():")
    lines.append("    down.copy_(lora_A)")
    lines.append("    up.copy_(lora_B)")
    lines += ["x.requires_grad_(True)"] if "x" in recorded.needs else []
    lines += [f"{p}.requires_grad_({n in recorded.needs})" for p, n in (("down", "lora_A"), ("up", "lora_B"))]
    lines += ["layer.bias.requires_grad_(True)"] if "bias" in recorded.needs else []
    return [*lines, "y = layer(x)"]


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
