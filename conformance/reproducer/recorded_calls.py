"""Which calls of a check belong on the tape."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import PurePath
from types import FunctionType
from typing import Any

import numpy as np
import torch

from conformance.reproducer.code_owner import owner_of
from conformance.reproducer.expressions import Expressions
from conformance.reproducer.literals import Unsayable
from conformance.reproducer.steps import SIMPLE

READING = ("get_parameter", "get_submodule", "get_buffer", "named_parameters", "named_modules", "parameters", "modules")
CHANGING = ("fill", "itemset", "partition", "put", "resize", "setfield", "sort")  # methods of arrays
CONVERTING = ("contiguous", "cpu", "detach", "double", "item", "numpy", "to", "tolist")  # methods of tensors
COMBINING = ("all", "any", "max", "min", "sum", "mean")  # methods of tensors that need no step of their own
COPIES = (copy.copy, copy.deepcopy, pickle.dumps, pickle.loads)


class RecordedCalls:
    """Says of each call whether it is recorded.

    Args:
        say: knows which objects the script has.
    """

    def __init__(self, say: Expressions) -> None:
        self.say = say
        self.files = True  # whether functions of the suite that read or write files are

    def is_dynamic(self, *values: Any) -> bool:
        """Whether one of the values is known to the script as an object."""
        return any(not isinstance(value, SIMPLE) and self.say.knows(value) for value in values)

    def is_of_wrapper(self, function: Any) -> bool:
        """Whether a function is a method that a wrapper of a library's layer inherits from torch.nn.Module."""
        owner, module = getattr(function, "__self__", None), getattr(function, "__module__", None)
        if not isinstance(owner, torch.nn.Module) or module != torch.nn.Module.__module__:
            return False
        return owner_of(owner) == "suite" and not self.say.knows(owner)

    def is_of_files(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
        """Whether a call is one of a function of the suite that reads or writes files of a temporary folder."""
        is_own = (
            isinstance(function, FunctionType) and owner_of(function) == "suite" and "<" not in function.__qualname__
        )
        given = [*arguments, *options.values()]
        return self.files and is_own and any(map(self.say.is_in_folder, given)) and self._have_code(given)

    def _have_code(self, values: list[Any]) -> bool:
        try:
            return all(self.say(value) for value in values)
        except Unsayable:
            return False

    def is_recorded(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
        """Whether a call belongs on the tape: one of the target's or torch's code, on what the script knows."""
        given = (*arguments, *options.values())
        if function in COPIES or self.say.is_numeric(function):
            return self.is_dynamic(*given)
        bound = getattr(function, "__self__", None)
        if isinstance(bound, PurePath) or self.is_of_wrapper(function):
            return self.say.is_in_folder(bound)
        if bound is not None and not isinstance(bound, type) and owner_of(type(bound)) == "python":
            return self.say.knows(bound) and not isinstance(bound, SIMPLE)
        where = owner_of(function)
        if where == "torch":
            return not (isinstance(function, type) and hasattr(function, "__enter__")) and function not in UNRECORDED
        if where == "suite":
            return self.say.is_suites_module(function)
        made_for_another = isinstance(function, type) and dataclasses.is_dataclass(function)
        return where == "target" and not (
            made_for_another and self.say.is_foreign(function) and not self.say.knows(function)
        )


UNRECORDED = (
    torch.set_grad_enabled,
    torch.is_grad_enabled,
    torch.is_autocast_enabled,
    torch.from_numpy,
    torch.get_deterministic_debug_mode,
    torch.set_deterministic_debug_mode,
)


def only_reads(function: Any) -> bool:
    """Whether a function changes nothing that exists."""
    name, bound = getattr(function, "__name__", ""), getattr(function, "__self__", None)
    if isinstance(bound, np.ndarray):
        return name not in CHANGING
    converts = isinstance(bound, torch.Tensor) and name in (*CONVERTING, *COMBINING) and not bound.requires_grad
    return converts or name in READING or isinstance(function, np.ufunc)
