"""Fine-tuning on a packed base (QLoRA), beside the same steps on the numbers Ŵ that its codes stand for, in float32.

A packed layer computes ``lora_linear(x, Ŵ, …)``, so the two trainings differ by rounding alone. `loss_band` bounds the
difference of their losses, with u = 2⁻²⁴:

- *A product.* A right layer is within ``4 u`` times the sum of the absolute values of a result's terms (at most 3.4 u
  is seen). The result of K terms of random signs is about √K times smaller than that sum, so it is off by ``4 u √K`` of
  its size.
- *A step.* P adapted layers one after another make 2 P products, forward and backward. The loss, and the sum of the
  absolute gradients, are off by ``e = 8 P u √K`` of their size; the norms between layers keep sizes.
- *All steps.* AdamW moves a parameter by about its rate η against the sign of its gradient g, and so lowers the loss by
  ``η Σ|g|`` a step. An error δ of g changes the move by at most 2 η δ/|g|, also where it changes the sign, and so the
  loss by at most ``2 η Σ δ = 2 e η Σ|g|``: by 2 e of the gain of the step. The gains of all steps sum up to at most the
  first loss.

Together that is at most ``3 e`` of the first loss, as long as training does not amplify a difference from step to step;
`target_comparison.BAND` says at which rates it does not. There fifty steps of `optimized` on the packed Llama differ by
1e-7 of the first loss, with seeds 0, 1 and 2. A scale that is off by 5 % in one layer, or one layer's dX without the
base, leaves the band within a few steps. A defect as small as rounding, such as a table with four digits, is for the
clauses of group `quantised`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import reference
from conformance.clauses.quantised.packed_operands import decoded
from conformance.demo.fine_tuning import FineTuning
from conformance.demo.target_comparison import BAND
from conformance.errors import UsageError
from conformance.judgement.outcomes import Violation

UNIT = 2.0**-24


@dataclass(frozen=True)
class Contender:
    """One of the trained models: its label in the table, its task, and the module that adapts it; None for PEFT."""

    label: str
    task: FineTuning
    parts: Any


def contenders(
    task: FineTuning, base: str, parts: Mapping[str, Any], of_peft: Any = None
) -> tuple[list[Contender], float]:
    """The models to train, the one with which the others are compared first, and the band of their losses.

    Args:
        base: the format of the packed layers; empty for float layers.
        parts: the module of each target; None for PEFT.   of_peft: the module whose `packed_linear` PEFT adapts.
    Raises:
        UsageError: if a layer cannot be packed, or if two targets pack it to different numbers.
    """
    if not base:
        return [Contender(target, task, part) for target, part in parts.items()], BAND
    found: list[Contender] = []
    numbers: dict[str, Tensor] = {}
    for target, part in parts.items():
        packing = of_peft if part is None else part
        one = packed(task, packing, base)
        if part is None:  # PEFT asks the model how transformers has loaded it
            one.model.is_loaded_in_4bit = True  # type: ignore[assignment]
        own = numbers_in(one, target, packing)
        if found:
            _check_equal(found[0].label, numbers, target, own)
        numbers = numbers or own
        found.append(Contender(f"{target} {base}", one, part))
    return [Contender("reference float", on_numbers(task, numbers), reference), *found], loss_band(task)


def packed(task: FineTuning, parts: Any, base: str) -> FineTuning:
    """The task on a model whose adapted layers a target has packed.

    Args:
        parts: a module with `packed_linear`.   base: a format.
    Raises:
        UsageError: if a layer cannot be packed.
    """
    model = copy.deepcopy(task.model)
    for name in task.layers:
        try:
            model.set_submodule(name, parts.packed_linear(model.get_submodule(name), base))
        except (ValueError, NotImplementedError) as error:
            raise UsageError(f"{name} of {task.name} cannot be packed in {base}: {error}") from error
    return replace(task, model=model)


def numbers_in(task: FineTuning, target: str, parts: Any) -> dict[str, Tensor]:
    """Ŵ of each packed layer, float32: the suite decodes it from the stored fields that the target shows.

    Raises:
        UsageError: if the target shows no storage that can be decoded.
    """
    found = {}
    for name in task.layers:
        layer: Any = task.model.get_submodule(name)
        try:
            numbers, _ = decoded(parts, layer, (layer.out_features, layer.in_features))
        except Violation as error:
            raise UsageError(f"the numbers of {name} packed by {target} cannot be read: {error}") from error
        found[name] = torch.from_numpy(numbers).float()
    return found


def on_numbers(task: FineTuning, numbers: dict[str, Tensor]) -> FineTuning:
    """The task on a float model with these weights in its adapted layers."""
    model = copy.deepcopy(task.model)
    for name, weight in numbers.items():
        layer: Any = model.get_submodule(name)
        layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return replace(task, model=model)


def _check_equal(first: str, wanted: dict[str, Tensor], target: str, got: dict[str, Tensor]) -> None:
    """Check that two targets pack a model to the same numbers, beside which both are trained.

    Raises:
        UsageError: naming the first layer whose numbers differ.
    """
    for name, weight in wanted.items():
        differing = int((weight != got[name]).sum())
        if differing:
            raise UsageError(
                f"{target} packs {name} {list(weight.shape)} to other numbers than {first}: {differing} differ, by at "
                f"most {float((weight - got[name]).abs().max()):.2g}; expected equal ones, so train {target} by itself"
            )


def loss_band(task: FineTuning) -> float:
    """How far losses on a packed base may be from those on Ŵ, relative to the first loss."""
    layers: list[Any] = [task.model.get_submodule(name) for name in task.layers]
    products = 2 * len(layers)  # as if all adapted layers followed one another
    terms = max(layer.in_features for layer in layers)
    return 3 * products * 4 * UNIT * math.sqrt(terms)
