"""The fault of an exception that leaves a check: the target's or the suite's, decided from its traceback.

An exception is the target's if it was raised in the target's code, or in a library that the target's code called. If it
was raised in the suite's own code, or in a library that the suite called (an attribute that is missing, a parameter of
another shape, a derivative that autograd refuses), the same case is judged on `reference`: the exception is the suite's
if `reference` raises one too, and otherwise the target's.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import linecache
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from conformance.errors import TargetError, UsageError
from conformance.isolation.monkeypatches import PRISTINE, protect
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.target.calls import first_lines

protect(__name__)

BESIDE = ("targets",)  # a folder of the suite whose code is that of targets
CALLED = ("torch", "numpy", "hypothesis", "transformers", "safetensors")  # libraries that the suite itself calls
CALL = 100  # characters of a call's source, at most
Frames = list[tuple[FrameType, int]]


def outcome_of(error: BaseException, check: Callable[..., Any], is_right: Callable[[], bool]) -> Violation | Refused:
    """The outcome of a case from whose check an exception came, if the exception is the target's.

    Args:
        check: the check, which is the suite's, wherever its file is.
        is_right: whether `reference` raises no exception on the case; called where the traceback does not decide.
    Raises:
        The exception itself, if it is the suite's.
    """
    own = getattr(check, "__code__", None)
    if not (raised_by_target(error, own) or is_right()):
        raise error
    if isinstance(error, NotImplementedError):
        return Refused(said(error, own))
    return Violation(said(error, own))


def raised_by_target(error: BaseException, own: CodeType | None = None) -> bool:
    """Whether the innermost code outside the libraries that raised an exception is not the suite's.

    Args:
        own: code of the suite that is not in its folder.
    """
    for frame, _ in reversed(_frames(error)):
        if frame.f_code is own or _is_suites(frame.f_code.co_filename):
            return False
        if not _is_library(frame.f_code.co_filename):
            return True
    return False


def said(error: BaseException, own: CodeType | None = None) -> str:
    """The exception as a message: the call of the suite that raised it, its type and text, and where it was raised."""
    frames = _frames(error)
    suites = [n for n, (frame, _) in enumerate(frames) if frame.f_code is own or _is_suites(frame.f_code.co_filename)]
    outside = [place for place in frames if not _is_library(place[0].f_code.co_filename)]
    call = _source(error, suites[-1]) if suites else ""
    text = f"{call or 'the target'} raised {type(error).__name__}: {first_lines(error)}"
    if outside:
        frame, line = outside[-1]
        text += f"\nat       {_shown(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name}"
    return text


@contextmanager
def looking_at(spec: str, is_right: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """A region that looks at a target's names and claims, before any check.

    Args:
        is_right: whether `reference` raises no exception in the same place.
    Raises:
        TargetError: for an exception that the target caused, by its traceback or by `is_right`.
    """
    try:
        yield
    except (UsageError, TargetError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if raised_by_target(error) or is_right():
            raise TargetError(f"target {spec!r} cannot be looked at: {said(error)}") from error
        raise


def is_right(subject: Any, check: Callable[[Any], Any]) -> bool:
    """Whether a check of the subject of the same name in `reference` raises no exception but an outcome.

    Without such a subject no check can tell, and the suite is taken to be at fault.
    """
    import reference

    here = Path(reference.__file__ or "").resolve().parent == _suite().parent / reference.__name__
    if not here or not hasattr(reference, subject.name):
        return False
    right = dataclasses.replace(subject, thing=getattr(reference, subject.name), target=reference)
    try:
        with _without_patches():
            check(right)
    except (Violation, Inconclusive, Refused):
        return True
    except Exception:  # noqa: BLE001  (whatever it is, it is not the target's)
        return False
    return True


@contextmanager
def _without_patches() -> Iterator[None]:
    """A region in which the target's monkeypatches do not return when `reference` is called."""
    patches, PRISTINE.replaced = PRISTINE.replaced, {}
    try:
        yield
    finally:
        PRISTINE.replaced = patches


def _frames(error: BaseException) -> Frames:
    """The frames through which an exception passed, the innermost last."""
    return list(traceback.walk_tb(error.__traceback__))


@cache
def _suite() -> Path:
    """The folder of the suite; in a reproducer, which holds the code of the suite that it needs, the script itself."""
    here = Path(_frames.__code__.co_filename)
    return here.resolve().parents[1] if here.name == "fault.py" else here


@cache
def _is_suites(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(_suite()) and path.relative_to(_suite()).parts[:1] != BESIDE


@cache
def _is_library(file: str) -> bool:
    """Whether a file is of Python or of a library that the suite calls; so is what has no file."""
    path = Path(file)
    if file.startswith("<") or any(path.is_relative_to(folder) for folder in _library_folders()):
        return True
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path.is_relative_to(sysconfig.get_path("stdlib")) and not installed


@cache
def _library_folders() -> tuple[str, ...]:
    specs = (importlib.util.find_spec(name) for name in CALLED)
    return tuple(str(Path(spec.origin).parent) for spec in specs if spec is not None and spec.origin)


def _source(error: BaseException, place: int) -> str:
    """The source of the expression that a frame of a traceback was computing; empty where there is none."""
    tb: TracebackType | None = next(islice(_tracebacks(error), place, None))
    assert tb is not None
    code = tb.tb_frame.f_code
    first, last, start, end = next(islice(code.co_positions(), tb.tb_lasti // 2, None))
    if first is None or last is None or start is None or end is None:
        return ""
    lines = [linecache.getline(code.co_filename, number).encode() for number in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    text = " ".join(b"".join(lines).decode(errors="replace").split())
    return text if len(text) <= CALL else f"{text[: CALL - 1]}…"


def _tracebacks(error: BaseException) -> Iterator[TracebackType]:
    found = error.__traceback__
    while found is not None:
        yield found
        found = found.tb_next


def _shown(file: str) -> str:
    """A file of the suite from the suite's folder on; another in full."""
    return str(Path(file).relative_to(_suite().parent)) if _is_suites(file) else file
