"""The features that a right implementation may lack; a clause of a feature is not claimed where the target lacks it.

Clauses without a feature are the *core*: the formula, its gradients, layouts, state and side effects. A target has a
feature if its callable takes the feature's argument, unless `CONFORMANCE["features"]` says that it is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SUPPORTED, ABSENT = "supported", "absent"


@dataclass(frozen=True)
class Feature:
    """One feature.

    Attributes:
        title: its name in verdicts and pages.
        arguments: by group, the argument that shows the feature: `Class(argument)` or `function(argument)`.
        conventions: the values that a target may declare; the first is the default.
    """

    title: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    conventions: tuple[str, ...] = (SUPPORTED, ABSENT)


def _of_layers(argument: str, **others: str) -> dict[str, str]:
    layer = f"LinearLoRA({argument})"
    return {"layer": layer, "merge": layer, "dora": layer, "distributed": layer, **others}


FEATURES: Mapping[str, Feature] = {
    "dropout": Feature("dropout", _of_layers("dropout", linear="lora_linear(dropout)")),
    "rslora": Feature("rsLoRA", _of_layers("use_rslora")),
    "adapter_dtype": Feature("adapter dtype", _of_layers("lora_dtype", linear="lora_linear")),
    "initialisation": Feature("choice of initialisation", _of_layers("lora_A_init_method")),
    "dora_norm": Feature("DoRA norm", conventions=("constant", "differentiated")),
    "memory_efficient": Feature("memory-efficient mode", _of_layers("use_memory_efficient_lora")),
}
