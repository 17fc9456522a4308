"""Adapters in a model: `patch_linear_module`, `apply_lora_to_linear_modules`, and how module names are matched."""

from collections.abc import Mapping
from typing import Any

from conformance.specification.groups import Group


def _shown(thing: Any) -> Mapping[str, str]:
    from conformance.clauses.model.shown_conventions import shown  # imports torch

    return shown(thing)


GROUP = Group(
    prefix="MOD",
    place=60,
    judged="adapting a model in place: toys, small Llama, Qwen, GPT-2, BERT and MoE of transformers, MiniLM",
    names="`patch_linear_module`, `apply_lora_to_linear_modules`, `ModuleMatcher`, `wildcard_match`, `merge_adapters`",
    required=("patch_linear_module", "apply_lora_to_linear_modules"),
    subjects=("apply_lora_to_linear_modules",),
    positional={"patch_linear_module": 8, "apply_lora_to_linear_modules": 2},
    shown=_shown,
)
