"""The conventions of adapted models that a target shows in a few calls on models of a few layers.

A convention is recognised only where every call fits it and no other convention. Something else is judged by the
default, and so is whatever a right implementation cannot show: that a warning is missing, for example.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import reference
from conformance.clauses.model.matching_oracle import chosen
from conformance.clauses.model.small_models import adapted, model_named
from conformance.isolation.monkeypatches import PRISTINE
from conformance.specification.features import ABSENT, AN_EFFECT, FEATURES, SUPPORTED
from conformance.target.expected_errors import quiet

NAMES = ("m.q_proj", "m.bq_proj", "n.m.q_proj")
PATTERNS = ("q_proj", "*_proj", "m.q_proj", ".*q_proj")  # no two rules choose the same layers by all of them
LAYERS = ("m.q_proj", "m.o_proj", "m.fc")


class ProbeForCausalLM(nn.Module):
    """A causal language model by its class and its config, with a projection and an output head."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(architectures=[type(self).__name__])
        self.q_proj, self.lm_head = nn.Linear(2, 2), nn.Linear(2, 2)

    def get_output_embeddings(self) -> nn.Module:
        """The output head, as transformers names it."""
        return self.lm_head


def shown(thing: Any) -> Mapping[str, str]:
    """The conventions that a target's module or object shows, by feature."""
    with _undisturbed():
        found = {
            "name_rule": _name_rule(thing),
            "string_pattern": _string_pattern(thing),
            "exclusions": _exclusions(thing),
            "match_all": _match_all(thing),
            "default_targets": _default_targets(thing),
            "no_match": "error" if _chosen(thing, LAYERS, target_modules=["nothing_like_it"]) is None else "",
            "output_head": _output_head(thing),
            "in_place": _in_place(thing),
        }
    return {name: value for name, value in found.items() if value}


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A region that leaves torch's random state, the target's patches and the log as they are."""
    before = logging.root.manager.disable
    with PRISTINE.suspended(), torch.random.fork_rng(devices=[]), quiet():
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _config(thing: Any, **options: Any) -> Any:
    return (getattr(thing, "PeftConfig", None) or reference.PeftConfig)(**options)


def _applied(thing: Any, model: nn.Module, **options: Any) -> list[str] | None:
    """The adapted layers of a model after a config is applied; None if the target refuses."""
    try:
        thing.apply_lora_to_linear_modules(model, _config(thing, dim=1, **options))
        return adapted(model)
    except Exception:  # noqa: BLE001  (the clauses report whatever it is)
        return None


def _chosen(thing: Any, names: tuple[str, ...], **options: Any) -> list[str] | None:
    return _applied(thing, model_named(names), **options)


def _name_rule(thing: Any) -> str:
    found = [_chosen(thing, NAMES, target_modules=[pattern]) or [] for pattern in PATTERNS]
    rules = FEATURES["name_rule"].conventions
    fitting = [rule for rule in rules if found == [chosen([pattern], NAMES, rule) for pattern in PATTERNS]]
    return fitting[0] if len(fitting) == 1 and any(found) else ""


def _string_pattern(thing: Any) -> str:
    regex = r"m\.[q]_proj"  # as one of a list it matches nothing, unless regular expressions are the rule
    alone, listed = (_chosen(thing, NAMES, target_modules=given) for given in (regex, [regex]))
    return "regex" if alone and not listed else ""


def _exclusions(thing: Any) -> str:
    if _takes(thing, "exclude_modules") == ABSENT:
        return ABSENT
    # names that every rule can read
    names = ("q_proj", "o_proj", "fc")
    both = _chosen(thing, names, target_modules=["q_proj", "o_proj"], exclude_modules=["o_proj"])
    if both == ["q_proj"]:
        return "combined"
    less = _chosen(thing, names, exclude_modules=["o_proj"])
    if less == ["fc", "q_proj"] and both is None:
        return "alone"
    return AN_EFFECT if less not in (None, _chosen(thing, names)) else ""


def _match_all(thing: Any) -> str:
    found = _chosen(thing, LAYERS, match_all_linear=True)
    if found == sorted(LAYERS):
        return SUPPORTED
    return _takes(thing, "match_all_linear") or (AN_EFFECT if found not in (None, _chosen(thing, LAYERS)) else "")


def _default_targets(thing: Any) -> str:
    found = _chosen(thing, LAYERS)
    return ABSENT if found is None else SUPPORTED if found == ["m.o_proj", "m.q_proj"] else AN_EFFECT if found else ""


def _takes(thing: Any, option: str) -> str:
    try:
        _config(thing, **{option: None})
    except TypeError as error:
        return ABSENT if option in str(error) and "unexpected" in str(error) else ""
    except Exception:  # noqa: BLE001  (the option is known, and None refused)
        return ""
    return ""


def _output_head(thing: Any) -> str:
    found = _applied(thing, _causal_model(), match_all_linear=True)
    return {("lm_head", "q_proj"): "chosen", ("q_proj",): "left out"}.get(tuple(found or ()), "")


def _causal_model() -> nn.Module:
    """A causal language model, of transformers' base class where the target has imported transformers."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return ProbeForCausalLM()
    base: Any = transformers.PreTrainedModel
    config = transformers.PretrainedConfig(architectures=["ProbeForCausalLM"])
    methods = {"get_output_embeddings": ProbeForCausalLM.get_output_embeddings, "config_class": type(config)}
    model: nn.Module = type("ProbeForCausalLM", (base,), methods)(config)
    model.q_proj, model.lm_head = nn.Linear(2, 2), nn.Linear(2, 2)
    return model


def _in_place(thing: Any) -> str:
    """Patching in place is absent where neither function keeps the layer's object, and both adapt it."""
    layer, model = nn.Linear(2, 2), model_named(["q_proj"])
    before = model.get_submodule("q_proj")
    try:
        patched = thing.patch_linear_module(layer, 1)
    except Exception:  # noqa: BLE001  (the clauses report whatever it is)
        return ""
    _applied(thing, model, target_modules=["q_proj"])
    after = model.get_submodule("q_proj")
    replaced = (patched is not layer, after is not before)
    if not (hasattr(patched, "lora_A") and hasattr(after, "lora_A")) or replaced[0] != replaced[1]:
        return ""
    return ABSENT if all(replaced) else SUPPORTED
