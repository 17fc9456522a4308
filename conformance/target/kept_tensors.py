"""Tensors that calls leave as they are: the form, requires_grad and bytes of each, before a call and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from conformance.judgement.outcomes import Refused, Violation, require
from conformance.target.calls import calling
from conformance.target.subject import Subject

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Call:
    """One way to call a layer.

    Attributes:
        said: the call in words.   training: the layer's mode.   learns: whether a backward pass follows.
        other: whether x has another dtype than the layer.   autocast: whether autocast is on.
    """

    said: str
    training: bool = True
    learns: bool = True
    other: bool = False
    autocast: bool = False

    @property
    def usual(self) -> bool:
        """Whether every layer must be able to do it; others may raise, and must then leave everything as it was."""
        return not (self.other or self.autocast)


CALLS = (
    Call("a forward and backward pass"),
    Call("a forward and backward pass in eval mode", training=False),
    Call("a call under no_grad in eval mode", training=False, learns=False),
    Call("a forward and backward pass on an x of another dtype", other=True),
    Call("a call under no_grad in eval mode on an x of another dtype", training=False, learns=False, other=True),
    Call("a forward and backward pass under autocast", autocast=True),
    Call("a call under no_grad in eval mode under autocast", training=False, learns=False, autocast=True),
)


class Kept:
    """What a tensor is at one time: `form`, the dtype, shape and device in words, `requires_grad` and its bytes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.form = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        self.requires_grad = tensor.requires_grad
        self.bytes = torch.cat([torch.empty(0, dtype=torch.uint8), *_bytes(tensor)])


def _bytes(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The bytes of a tensor, or of those that a wrapper, as torchao's are, consists of."""
    wrapper: Any = tensor
    if hasattr(type(tensor), "__tensor_flatten__"):  # the protocol by which torch.compile takes a wrapper apart
        for name in wrapper.__tensor_flatten__()[0]:
            yield from _bytes(getattr(wrapper, name))
    elif not tensor.is_meta:
        yield tensor.detach().clone().cpu().contiguous().reshape(-1).view(torch.uint8)


def stored_by(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a module by name, without the buffers that its state_dict leaves out."""
    modules = module.named_modules()
    scratch = {
        f"{path}.{name}" if path else name for path, part in modules for name in part._non_persistent_buffers_set
    }
    return {**dict(module.named_parameters()), **{n: b for n, b in module.named_buffers() if n not in scratch}}


def require_kept(before: Mapping[str, Kept], now: Tensors, what: str) -> None:
    """Require that tensors are what they were before a call; `what` is the call in words."""
    for name, was in before.items():
        require(name in now, f"{what} took {name} out of the layer")
        kept = Kept(now[name])
        require(kept.form == was.form, f"{what} made {name} {kept.form}: it was {was.form}")
        flag = f"{what} set requires_grad of {name} to {kept.requires_grad}: it was {was.requires_grad}"
        require(kept.requires_grad == was.requires_grad, flag)
        changed = int((kept.bytes != was.bytes).sum())
        require(changed == 0, f"{what} changed {changed} of {len(was.bytes)} bytes of {name}")


def require_kept_by_calls(
    subject: Subject,
    tensors: Callable[[], Tensors],
    call: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    first: int,
    *,
    module: nn.Module | None = None,
    learns: bool = True,
) -> None:
    """Require that no call changes a tensor, however it is called.

    Args:
        tensors: what the layer stores now, by name.   call: one forward pass.
        x: an input, of a floating point dtype or of tokens.
        first: the number of the call that comes first; the others follow in turn.
        module: the layer, where it has modes.
        learns: whether the layer has a backward pass.
    """
    before = {name: Kept(tensor) for name, tensor in tensors().items()}
    for way in (*CALLS[first % len(CALLS) :], *CALLS[: first % len(CALLS)]):
        if _fits(way, subject, x, module, learns):
            with ExitStack() as within:
                if not way.usual:
                    within.enter_context(suppress(Violation, Refused))
                _run(way, subject, call, x, module)
            require_kept(before, tensors(), way.said)


def _fits(way: Call, subject: Subject, x: torch.Tensor, module: nn.Module | None, learns: bool) -> bool:
    if not way.training and (module is None or subject.follows("eval_mode", "merged")):
        return False  # a function has no modes; by the convention eval() merges, and the weight is another one
    if way.autocast and subject.lacks("autocast"):
        return False
    return (learns or not way.learns) and (x.is_floating_point() or not way.other)


def _run(
    way: Call, subject: Subject, call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, module: Any
) -> None:
    if module is not None:
        module.train(way.training)
    given = x.detach().clone()
    if way.other:
        given = given.to(torch.bfloat16 if x.dtype == torch.float32 else torch.float32)
    if way.learns and given.is_floating_point():
        given.requires_grad_()
    autocast = torch.autocast(subject.device.partition(":")[0], torch.bfloat16, enabled=way.autocast)
    with autocast, torch.set_grad_enabled(way.learns), calling(way.said):
        y = call(given)
    if way.learns:
        with calling(way.said):
            torch.autograd.backward([y], [torch.ones_like(y)])
