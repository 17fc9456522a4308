"""Known-bad twins of round trip: `to_dict` or `from_dict` loses, changes or shares a value."""

# ruff: noqa: ARG005  (twins ignore arguments on purpose)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import reference
from tests.known_bad import breaks
from tests.known_bad.config.config_classes import CONFIG, Right, accepting, reading, writing


@breaks("CFG-ROUND-TRIP", says="from_dict(to_dict(c))", **CONFIG)
class RoundsTheDropout(Right):
    PeftConfig = writing(lambda d, c: {**d, "dropout": round(d["dropout"], 6)})


@breaks("CFG-ROUND-TRIP", says="has lora_dtype = None", **CONFIG)
class DoesNotWriteTheDtype(Right):
    PeftConfig = writing(lambda d, c: {key: value for key, value in d.items() if key != "lora_dtype"})


@breaks("CFG-ROUND-TRIP", says="exclude_modules = []", **CONFIG)
class DoesNotReadExclusions(Right):
    PeftConfig = reading(lambda d: {**d, "exclude_modules": None})


@breaks("CFG-JSON", says="not JSON serializable", source="NVIDIA-NeMo/Automodel 901a2074d (CF1)", **CONFIG)
class WritesTheDtypeItself(Right):
    PeftConfig = writing(lambda d, c: {**d, "lora_dtype": c.lora_dtype})


@breaks("CFG-JSON", says="raised TypeError", **CONFIG)
class WritesSets(Right):
    PeftConfig = writing(lambda d, c: {**d, "target_modules": set(d["target_modules"])})


@breaks("CFG-DICT", says="which the config has no field for", **CONFIG)
class WritesItsType(Right):
    @dataclass
    class PeftConfig(reference.PeftConfig):
        def to_dict(self) -> Any:
            return {**super().to_dict(), "peft_type": "LORA"}

        @classmethod
        def from_dict(cls, d: Any) -> Any:
            return super().from_dict({key: value for key, value in d.items() if key != "peft_type"})


@breaks("CFG-DICT", says="to_dict()['lora_dtype'] is 'torch.", **CONFIG)
class WritesTheDtypesFullName(Right):
    PeftConfig = writing(lambda d, c: {**d, "lora_dtype": None if c.lora_dtype is None else str(c.lora_dtype)})


@breaks("CFG-DICT", says="to_dict() lacks", **CONFIG)
class WritesWhatDiffersOnly(Right):
    PeftConfig = writing(lambda d, c: {k: v for k, v in d.items() if v != reference.PeftConfig().to_dict()[k]})


@breaks("CFG-ORDER", says="its keys in the order", **CONFIG)
class WritesInAlphabeticalOrder(Right):
    PeftConfig = writing(lambda d, c: dict(sorted(d.items())))


@breaks("CFG-OWN-DICT", says="changed the config", source="vars(self) or a shallow copy", **CONFIG)
class WritesItsOwnLists(Right):
    PeftConfig = writing(lambda d, c: {**d, "target_modules": c.target_modules})


@breaks("CFG-OWN-LISTS", says="after the caller appended", **CONFIG)
class KeepsTheCallersLists(Right):
    PeftConfig = accepting("target_modules", lambda value: isinstance(value, list))


def _popping(d: Any) -> Any:
    return {**{key: d[key] for key in d if key != "lora_dtype"}, "lora_dtype": d.pop("lora_dtype", None)}


def _normalising(d: Any) -> Any:
    d["target_modules"] = d.get("target_modules") or []
    return d


@breaks("CFG-ARGUMENT", says="'lora_dtype': '(gone)'", **CONFIG)
class PopsTheDtype(Right):
    PeftConfig = reading(_popping)


@breaks("CFG-ARGUMENT", says="from_dict changed its argument: {'target_modules': []}", **CONFIG)
class FillsInLists(Right):
    PeftConfig = reading(_normalising)
