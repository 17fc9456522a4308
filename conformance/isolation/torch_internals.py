"""PyTorch's private names that the suite uses, each with a fall-back; `reference.torch_internals` has the package's.

No other file of the suite may use one, but `TorchDispatchMode` and `torch.utils._pytree`, which PyTorch documents.
"""

from collections.abc import Sized
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any

import torch


def found(name: str) -> Any | None:
    """The object that PyTorch has under this name below `torch`, or None."""
    try:
        return attrgetter(name)(torch)
    except AttributeError:
        return None


STACKS = ("overrides._get_current_function_mode_stack", "utils._python_dispatch._get_current_dispatch_mode_stack")


def modes() -> int:
    """The number of active torch function modes and dispatch modes; kinds that cannot be read are not counted."""
    stacks: list[Sized] = [read() for read in map(found, STACKS) if read is not None]
    return sum(map(len, stacks))


def compilation_limits(most: int) -> AbstractContextManager[Any]:
    """A region in which torch.compile compiles a function up to `most` times; the fall-back keeps torch's own limits.

    Beyond its limits, torch.compile no longer compiles: it calls the function itself.
    """
    config = found("_dynamo.config")
    known = [name for name in ("recompile_limit", "accumulated_recompile_limit") if hasattr(config, name)]
    return config.patch(**dict.fromkeys(known, most)) if config is not None and known else nullcontext()
