"""The script of a check that keeps the code which it has run on the target: the same calls, and the last comparison."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import torch

from conformance.judgement.recording import Recording
from conformance.reproducer.check_script import importing
from conformance.target.subject import Subject

MODULES = {
    "copy": "import copy",
    "pickle": "import pickle",
    "ThreadPoolExecutor": "from concurrent.futures import ThreadPoolExecutor",
    "nn": "from torch import nn",
    "parametrize": "from torch.nn.utils import parametrize",
    "checkpoint": "from torch.utils.checkpoint import checkpoint",
}


def called(
    recorded: Recording, subject: Subject, targets: tuple[str, str], header: str, comparison: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """Scripts for the target and the same ones for the reference: first without the judgements in between, then all."""
    calls = recorded.calls
    assert calls is not None
    last = max((n for n, (_, _, judges) in enumerate(calls.lines) if not judges), default=0)
    short = [line for n, line in enumerate(calls.lines) if not line[2] or n > last]
    for lines in (short, calls.lines):
        body = [part for code, given, _ in lines for part in (*map(_assigned, given.items()), code) if part]
        first, second = (_text(calls.setup, body, subject, target, header, comparison) for target in targets)
        yield first, second


def _text(setup: str, body: list[str], subject: Subject, target: str, header: str, comparison: tuple[str, ...]) -> str:
    code = "\n".join(body)
    definitions = [part for part in re.split(r"\n\n\n", setup.strip("\n")) if _is_used(part, code)]
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
