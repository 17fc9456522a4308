"""The conventions of a layer that a few calls of a small one show."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from conformance.isolation.monkeypatches import PRISTINE
from conformance.specification.features import FEATURES
from conformance.target.adapter_tensors import adapter_of
from conformance.target.expected_errors import quiet
from conformance.target.limits import safely
from conformance.target.signature import arguments_for

UPDATES = "autocast_updates"
ADAPTER = ("lora_A", "lora_B")


def shown(thing: Any) -> Mapping[str, str]:
    """The conventions that a target's `LinearLoRA` shows, by feature; none that a call does not decide."""
    updates = _updates(thing.LinearLoRA)
    return {UPDATES: updates} if updates else {}


@lru_cache(maxsize=8)
def _updates(kind: Any) -> str:
    def found() -> str:
        try:
            return _autocast_updates(kind)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001  (the clauses report whatever it is)
            return ""

    return str(safely(found) or "")


def _autocast_updates(kind: Any) -> str:
    """What a call in an autocast region computes with, after lora_A and lora_B changed in it: new or old values.

    The weight is zero, and the values of A and B are powers of two. So y tells which of them it comes from; a mixture
    of old and new ones is no convention.
    """
    layer = kind(_zero_base(), **arguments_for(kind, {"dim": 1, "alpha": 1})).train()
    x = torch.ones(1, 1)
    outputs: list[Tensor] = []
    with PRISTINE.suspended(), quiet(), torch.autocast("cpu", dtype=torch.bfloat16):
        for a, b in ((1.0, 1.0), (2.0, 4.0)):
            with torch.no_grad():
                for name, value in zip(ADAPTER, (a, b), strict=True):
                    adapter_of(layer, name).fill_(value)
            outputs.append(layer(x).detach().float())
    new, old = FEATURES[UPDATES].conventions
    ratio = float(outputs[1] / outputs[0])
    return {8.0: new, 1.0: old}.get(ratio, "")


def _zero_base() -> nn.Linear:
    base = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(base.weight)
    return base
