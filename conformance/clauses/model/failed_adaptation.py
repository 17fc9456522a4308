"""A model that `apply_lora_to_linear_modules` refuses part-way, because a layer further on cannot have an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from conformance.clauses.model.apply_to_model import MODELS, ModelCase
from conformance.clauses.model.small_models import Toy
from conformance.clauses.model.target_calls import make_config, patch
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.expected_errors import quiet
from conformance.target.subject import Subject

ERRORS = (ValueError, TypeError, NotImplementedError)


def _typed(dtype: torch.dtype) -> Callable[[Subject, Toy], None]:
    def spoil(_: Subject, model: Toy) -> None:
        weight = torch.ones(model.head.weight.shape, dtype=dtype, device=model.head.weight.device)
        model.head.weight = nn.Parameter(weight, requires_grad=False)

    return spoil


def _lazy(_: Subject, model: Toy) -> None:
    model.head = nn.LazyLinear(5)


def _adapted(subject: Subject, model: Toy) -> None:
    patch(subject, model.head, dim=1)


SPOILT: dict[str, Callable[[Subject, Toy], None]] = {
    "uint8": _typed(torch.uint8),
    "int8": _typed(torch.int8),
    "lazy": _lazy,
    "adapted": _adapted,
}
FAILING = MODELS.narrowed(targets=("uint8", "lazy", "int8", "adapted"))


@clause(
    "MOD-FAILED-INTACT",
    sentence="""If a chosen layer cannot have an adapter, because its weight has an integer dtype or is not
    initialised, or it has one, the call raises a ValueError, TypeError or NotImplementedError, and leaves the whole
    model as it was: classes, parameters, requires_grad, buffers, modes, attributes and hooks.""",
    why="""A caller that catches the error otherwise goes on with a model whose first layers are adapted and whose
    others are frozen.""",
    cases=FAILING,
    level="SHOULD",
    dtypes=("float32",),
    weight=0.5,
)
def test_failed_call(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject)
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    SPOILT[case.targets](subject, model)
    config = make_config(subject, match_all_linear=True, dim=case.dim, use_triton=case.triton)
    before, what = model_state(model), f"apply_lora_to_linear_modules to a model with a head that is {case.targets}"
    try:
        with quiet():
            subject.thing(model, config)
    except ERRORS:
        pass
    except Exception as error:  # noqa: BLE001  (what else it raises is judged)
        require(False, f"{what} raised {type(error).__name__}: expected a ValueError; {error}")
    else:
        require(case.targets != "adapted", f"{what} returned: expected an error")
        return  # a target may have adapters for such layers
    after = model_state(model)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    require(not changed, f"{what} was refused and changed {', '.join(changed[:4])} of {len(changed)}")
    handle.remove()
    require(not model.blocks[0]._forward_hooks, f"{what} was refused, and a hook's handle no longer removes it")


def model_state(model: nn.Module) -> dict[str, Any]:
    """All that a call may not change, by its name; tensors by identity and contents."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[f"the class of {name}"] = type(module)
        state[f"the mode of {name}"] = module.training
        state[f"the attributes of {name}"] = sorted(vars(module))
        state[f"the hooks of {name}"] = list(module._forward_hooks), list(module._forward_pre_hooks)
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            known = tensor is not None and not nn.parameter.is_lazy(tensor)
            values = tensor.detach().flatten().tolist() if known and tensor is not None else None
            flag = None if tensor is None else tensor.requires_grad
            state[f"{name}.{key}"] = id(tensor), flag, values
    return state
