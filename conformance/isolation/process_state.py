"""Settings of the whole process that a target could change: reading, comparing and restoring them."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from conformance.isolation import torch_internals
from conformance.isolation.monkeypatches import PRISTINE
from conformance.judgement.outcomes import Violation

RANDOM = ("torch's random state", "the GPU's random state", "NumPy's random state", "Python's random state")
MATMUL: Any = torch.backends.cuda.matmul
DNN: Any = torch.backends.cudnn
MEMORY: Any = torch.utils.deterministic
SMALLEST = sys.float_info.min  # the smallest normal number


def _autocast() -> tuple[Any, ...]:
    kinds = ("cpu", "cuda")
    return (
        *(torch.is_autocast_enabled(kind) for kind in kinds),
        *(torch.get_autocast_dtype(kind) for kind in kinds),
        torch.is_autocast_cache_enabled(),
        _nesting(),
    )


def _nesting() -> int:
    """The number of autocast regions around this line."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _set_autocast(values: tuple[Any, ...]) -> None:
    """Leave the autocast regions that code has entered and not left, after an exception say."""
    for kind, enabled, dtype in zip(("cpu", "cuda"), values[:2], values[2:4], strict=True):
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
    torch.set_autocast_cache_enabled(values[4])
    while _nesting() > values[5]:
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


def _flushes() -> bool:
    """Whether the CPU flushes subnormal results to zero; a Python division is fast enough for every case."""
    return SMALLEST / 2 == 0


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _environment() -> dict[Any, Any]:
    """The environment variables as Python's undecoded bytes: decoding them twice per case would take too long."""
    kept = getattr(os.environ, "_data", None)
    return dict(os.environ if kept is None else kept)


def _set_environment(values: dict[Any, Any]) -> None:
    os.environ.clear()
    os.environ.update({os.fsdecode(name): os.fsdecode(value) for name, value in values.items()})


def _filters() -> list[Any]:
    """The warning filters of Python's own categories; a library that is imported late may add filters for its own."""
    return [filter_ for filter_ in warnings.filters if filter_[2].__module__ == "builtins"]


def _set_filters(values: list[Any]) -> None:
    others = [filter_ for filter_ in warnings.filters if filter_[2].__module__ != "builtins"]
    warnings.filters[:] = [*values, *others]  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _on_gpus() -> tuple[bytes, ...]:
    cuda: Any = torch.cuda
    if not cuda.is_initialized():
        return ()
    return tuple(state.numpy().tobytes() for state in cuda.get_rng_state_all())


def _of_numpy() -> tuple[Any, ...]:
    kind, key, *rest = np.random.get_state(legacy=True)
    return kind, np.asarray(key).tobytes(), *rest


# for each setting, a function that reads it, and one that restores it if that is possible
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any] | None]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (lambda: str(torch.get_default_device()), None),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "inference mode": (torch.is_inference_mode_enabled, None),
    "autocast": (_autocast, _set_autocast),
    "torch's modes": (torch_internals.modes, None),
    "anomaly detection": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "the precision of float32 products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "TF32 in cuDNN": _attribute(DNN, "allow_tf32"),
    "reduced precision in float16 sums": _attribute(MATMUL, "allow_fp16_reduced_precision_reduction"),
    "reduced precision in bfloat16 sums": _attribute(MATMUL, "allow_bf16_reduced_precision_reduction"),
    "cuDNN's benchmarking": _attribute(DNN, "benchmark"),
    "cuDNN's determinism": _attribute(DNN, "deterministic"),
    "deterministic algorithms": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "the filling of uninitialised memory": _attribute(MEMORY, "fill_uninitialized_memory"),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the flushing of subnormals": (_flushes, torch.set_flush_denormal),
    "NumPy's error handling": (np.geterr, lambda values: np.seterr(**values)),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "the working directory": (os.getcwd, os.chdir),
    "the environment": (_environment, _set_environment),
    "the filters of warnings": (_filters, _set_filters),
    "torch's random state": (lambda: torch.get_rng_state().numpy().tobytes(), None),
    "the GPU's random state": (_on_gpus, None),
    "NumPy's random state": (_of_numpy, None),
    "Python's random state": (random.getstate, None),
}
RESTORED = tuple(name for name, (_, put) in SETTINGS.items() if put is not None)
# a library may change these settings on import: it may add a variable or a filter, and set up its threads
DRAWS = 1000  # of 32 bits that an import may take from Python's random numbers
ALLOWED_ON_IMPORT = ("the environment", "the filters of warnings", "the number of threads", *RANDOM[1:2])


def taken(names: tuple[str, ...] = tuple(SETTINGS)) -> dict[str, Any]:
    """The current values of these settings."""
    return {name: SETTINGS[name][0]() for name in names}


def changes(before: dict[str, Any]) -> list[str]:
    """The settings that have changed, each described in words."""
    now = taken(tuple(before))
    return [_said(name, before[name], now[name]) for name in before if now[name] != before[name]]


def changes_by_import(before: dict[str, Any]) -> list[str]:
    """The changed settings that a library's import must not change; it may draw from Python's random numbers.

    Many packages draw an identifier when they are imported, which nobody who imports them can help; a seed is another
    matter, since it repeats the numbers of others.
    """
    name = "Python's random state"
    return changes({key: value for key, value in before.items() if key != name or not _is_drawn_from(value)})


@contextmanager
def settings_restored() -> Iterator[None]:
    """Record and restore the process settings that an import changes: a target must not change them."""
    before = taken(tuple(name for name in SETTINGS if name not in ALLOWED_ON_IMPORT))
    yield
    PRISTINE.settings = changes_by_import(before)
    restore(before)


def _is_drawn_from(before: Any) -> bool:
    """Whether Python's random state follows from an earlier one by draws."""
    source, now = random.Random(), random.getstate()
    source.setstate(before)
    for _ in range(DRAWS):
        if source.getstate() == now:
            return True
        source.getrandbits(32)
    return False


def restore(before: dict[str, Any]) -> None:
    """Restore the settings that can be restored."""
    for name, value in before.items():
        read, put = SETTINGS[name]
        if put is not None and read() != value:
            put(value)


@contextmanager
def kept(what: str, but: tuple[str, ...] = ()) -> Iterator[None]:
    """A region in which no process-wide setting may change.

    Args:
        what: the code in the region, for the message.   but: settings that may change.
    Raises:
        Violation: naming the changed settings.
    """
    before = taken(tuple(name for name in SETTINGS if name not in but))
    PRISTINE.left.clear()
    yield
    found = [*dict.fromkeys(PRISTINE.left), *changes(before)]
    if found:
        raise Violation(f"{what} changed {'; '.join(found)}")


def _said(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict):
        changed = (key for key in {*before, *now} if before.get(key) != now.get(key))
        names = sorted(os.fsdecode(key) for key in changed)
        return f"{name}: {', '.join(names[:5])}"
    if name in RANDOM or isinstance(before, list | tuple):
        return name
    return f"{name} from {before} to {now}"
