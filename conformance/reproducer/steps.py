"""The steps of a check as lines of code, and the ways in which it can fail."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import torch

from conformance.reproducer.code_owner import owner_of
from conformance.reproducer.literals import Leaf

TARGETS = ("_target_", "_import_")
SIMPLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.Size)  # known by value, not identity


@dataclass
class Step:
    """One call on a target's object, or one value, as a line of code.

    Attributes:
        name: the variable that holds the result.   node: the code, an expression over earlier variables.
        value: the result.   hint: a good name for it.   leaf: the value of a tensor that the case gives.
        modes: the code of the modes of torch that were on.
        raised: the exception of the call.   effect: whether the call may change what exists.
    """

    name: str
    node: ast.expr | ast.stmt | None
    value: Any = None
    hint: str = "value"
    leaf: Leaf | None = None
    modes: tuple[str, ...] = ()
    raised: BaseException | None = None
    effect: bool = True

    @property
    def is_targets(self) -> bool:
        """Whether it is a call of one of the target's names, or of the library behind it."""
        return self.node is not None and any(
            isinstance(n, ast.Name) and n.id.startswith(TARGETS) for n in ast.walk(self.node)
        )


@dataclass
class Failure:
    """How a check failed.

    Attributes:
        kind: `compared`, `raised`, `returned` or `required`.
        actual: the code of the compared tensor.   expected: what it should be.
        step: the call that raised or returned.   types, mentions: of the error that it should raise.
        worst: the index of the worst element.
    module, place, names: of the requirement: its module, position and the local variables around it.
    callers: modules, lines and variables of the suite's functions that were running, the innermost first.
    condition: an expression that is true while the defect is there.   has_dtype: whether the dtype is compared.
    acts: the steps that are needed although the condition does not name them.
    """

    kind: str
    actual: ast.expr | None = None
    expected: Any = None
    step: Step | None = None
    types: tuple[type[BaseException], ...] = ()
    mentions: tuple[str, ...] = ()
    module: str = ""
    place: tuple[int, int] = (0, 0)
    names: dict[str, Any] | None = None
    callers: tuple[tuple[str, int, dict[str, Any]], ...] = ()
    condition: ast.expr | None = None
    has_dtype: bool = True
    worst: tuple[int, ...] = ()
    acts: frozenset[str] = frozenset()


def modes_on() -> tuple[str, ...]:
    """The code of the modes of torch that are on."""
    found: tuple[str, ...] = () if torch.is_grad_enabled() else ("torch.no_grad()",)
    if torch.is_inference_mode_enabled():
        found = ("torch.inference_mode()",)
    if torch.is_autocast_enabled("cpu"):
        found += (f'torch.autocast("cpu", dtype={torch.get_autocast_dtype("cpu")})',)
    return found


def _is_plain(kind: type) -> bool:
    """Whether a class of modules is torch's, or one that the suite makes models of."""
    return owner_of(kind) in ("torch", "suite")


def hint_of(function: Any) -> str:
    """A good name for what a function returns."""
    if isinstance(function, torch.nn.Module):
        return "y"
    name = getattr(function, "__name__", "value")
    if isinstance(function, type) and issubclass(function, torch.nn.Module):
        return "base" if function is torch.nn.Linear else "model" if _is_plain(function) else "layer"
    if name.startswith("lora_") or name == "apply":
        return "y"
    if "LoRA" in name or "Linear" in name:
        return "layer"
    return {"PeftConfig": "config", "grad": "gradients", "state_dict": "state"}.get(name, "value")
