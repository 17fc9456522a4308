"""The end of a script: the comparison or the call that tells whether the defect is there."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from conformance.reproducer.literals import WIDTH, tensor_literal
from conformance.reproducer.steps import Failure, Step
from conformance.reproducer.tape import Tape

SHOWN = 64  # elements; of a larger tensor, the row of the worst element is compared


class Writer(Protocol):
    """What writes the lines of a script, and what it knows of the failure."""

    failure: Failure
    tape: Tape
    title: str
    message: str
    condition: ast.expr | None
    expected: ast.expr | None
    budget: ast.expr | None

    def code(self, node: Any) -> str:
        """The source of a node."""

    def line(self, step: Step) -> str:
        """The line of a step."""


def end(script: Writer) -> Iterator[str]:
    """The lines that raise SystemExit with a sentence while the defect is there, and say that it is not."""
    failure, title = script.failure, script.title
    if failure.kind == "compared":
        yield from _comparison(script)
    elif failure.kind == "required":
        yield f"if {script.code(script.condition)}:"
        yield f"    raise SystemExit({_quoted(f'{title}: {script.message}')})"
    else:
        assert failure.step is not None
        wanted = failure.step.modes
        call = script.line(failure.step)
        yield "try:"
        if wanted:
            yield f"    with {', '.join(wanted)}:"
        yield textwrap.indent(call, "        " if wanted else "    ")
        if failure.kind == "raised":
            yield "except Exception as error:"
            shown = call.replace("{", "{{").replace("}", "}}").replace("\\", "\\\\").replace('"', "'")
            shown = shown.splitlines()[0][:60]
            yield f'    raise SystemExit(f"{title}: {shown} raised {{type(error).__name__}}: {{error}}") from None'
        else:
            types = ", ".join(script.code(script.tape.say(kind)) for kind in failure.types)
            yield f"except ({types}) as error:" if len(failure.types) > 1 else f"except {types} as error:"
            if failure.mentions:
                yield f"    if any(word not in str(error) for word in {list(failure.mentions)!r}):"
                yield f'        raise SystemExit(f"{title}: the error does not name all of this: {{error}}") from None'
            else:
                yield "    pass"
            if Exception not in failure.types:
                yield "except Exception as error:"
                yield f'    raise SystemExit(f"{title}: raised {{type(error).__name__}}: {{error}}") from None'
            yield "else:"
            yield f"    raise SystemExit({_quoted(f'{title}: {script.message}')})"
    yield f'print("{title}: this case is right")'


def _comparison(script: Writer) -> Iterator[str]:
    """The lines that compare a tensor with its exact value, and name the worst element."""
    expected, title = script.failure.expected, script.title
    assert script.failure.actual is not None
    what = expected.name.replace("{", "{{").replace("}", "}}")
    value, bounds, part = _shown(script)
    got = f"{script.code(script.failure.actual)}{part}"
    yield f"got = {got if script.failure.has_dtype else _tensor(got)}"
    if script.expected is not None:
        yield f"expected = {_tensor(script.code(script.expected))}"
    else:
        yield f"expected = {tensor_literal(torch.from_numpy(value))}"
    shown = "list(got.shape), got.dtype" if script.failure.has_dtype else "list(got.shape)"
    wanted = f", {expected.dtype}" if script.failure.has_dtype else ""
    other = f" or got.dtype != {expected.dtype}" if script.failure.has_dtype else ""
    if script.failure.has_dtype:
        yield f"if not isinstance(got, torch.Tensor) or got.shape != expected.shape{other}:"
        yield f"    got = ({shown}) if isinstance(got, torch.Tensor) else got"
        yield f'    raise SystemExit(f"{title}: {what} is {{got}}, expected {list(value.shape)}{wanted}")'
    if script.budget is not None:
        yield f"bound = {_tensor(script.code(script.budget))}"
    elif bounds is None:
        yield "bound = torch.zeros_like(expected)"
    else:
        yield f"bound = {tensor_literal(_rounded_up(bounds, value.shape))}"
    yield "error = (got.detach().double().cpu() - expected).abs()"
    close = "(error <= bound)"
    if not np.isfinite(value).all():
        close = "((error <= bound) | (got == expected) | (got.isnan() & expected.isnan()))"
    yield f"if not {close}.all():"
    yield "    worst = tuple(i.item() for i in torch.unravel_index((error - bound).argmax(), error.shape))"
    yield '    seen = f"got {got[worst]:.9g}, expected {expected[worst]:.9g}, bound {bound[worst]:.3g}"'
    yield f'    raise SystemExit(f"{title}: {what}{{list(worst)}}: {{seen}}")'


def _tensor(code: str) -> str:
    """The code of an array as that of a tensor."""
    return f"torch.as_tensor({code})" if "np." in code or ".numpy()" not in code else code.replace(".numpy()", "")


def _shown(script: Writer) -> tuple[Any, Any, str]:
    """The compared values, their bounds, and the index of the part that they are: the worst row of a large tensor."""
    expected, worst = script.failure.expected, script.failure.worst
    value, bounds = np.array(expected.value), expected.budget
    if bounds is not None:
        bounds = np.broadcast_to(np.asarray(bounds, dtype=np.float64), value.shape)
    if value.size <= SHOWN or script.expected is not None or not worst:
        return value, bounds, ""
    last = slice(None) if value.shape[-1] <= SHOWN else slice(worst[-1], worst[-1] + 1)
    index: tuple[Any, ...] = (*worst[:-1], last)
    text = ", ".join([*map(str, worst[:-1]), ":" if last == slice(None) else f"{last.start}:{last.stop}"])
    return value[index], None if bounds is None else bounds[index], f"[{text}]"


def _rounded_up(budget: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """Bounds with three digits, none below the budget."""
    values = np.broadcast_to(np.asarray(budget, dtype=np.float64), shape)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        unit = 10.0 ** (np.floor(np.log10(np.where(values > 0, values, 1.0))) - 2)
        up = np.where((values > 0) & np.isfinite(values), np.ceil(values / unit) * unit, values)
    return torch.from_numpy(np.array([float(f"{v:.3g}") for v in up.flatten()]).reshape(shape))


def _quoted(text: str) -> str:
    """A message as a literal, in lines that are not too long."""
    lines = textwrap.wrap(" ".join(text.split()), WIDTH - 14)
    if len(lines) == 1:
        return repr(lines[0])
    lines = [f"{line} " for line in lines[:-1]] + lines[-1:]
    return "\n" + "\n".join(f"        {line!r}" for line in lines) + "\n    "
