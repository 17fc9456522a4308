"""Known-bad twins of refusals: the config accepts wrong keys and values, or its error does not name them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

import reference
from tests.known_bad import breaks
from tests.known_bad.config.config_classes import CONFIG, NAMES, Right, accepting, reading, refusing


@breaks("CFG-UNKNOWN", says="expected ValueError", source="huggingface/peft #2397 (CF4)", **CONFIG)
@breaks("CFG-UNKNOWN-FALSY", says="expected ValueError", source="huggingface/peft #2397 (CF4)", **CONFIG)
class IgnoresUnknownKeys(Right):
    PeftConfig = reading(lambda d: {key: value for key, value in d.items() if key in NAMES})


@breaks("CFG-UNKNOWN-FALSY", says="expected ValueError", **CONFIG)
class IgnoresUnknownKeysWithoutValue(Right):
    PeftConfig = reading(lambda d: {key: value for key, value in d.items() if key in NAMES or value})


@breaks("CFG-UNKNOWN", says="raised TypeError", source="cls(**d)", **CONFIG)
class LeavesUnknownKeysToPython(Right):
    @dataclass
    class PeftConfig(reference.PeftConfig):
        @classmethod
        def from_dict(cls, d: Any) -> Any:
            return cls(**d)


def _curt(d: Any) -> Any:
    for key, value in d.items():
        if key not in NAMES:
            raise ValueError(f"unknown key {key} = {value}")
    return d


@breaks("CFG-UNKNOWN", says="the message does not name", **CONFIG)
class DoesNotNameTheNearestKey(Right):
    PeftConfig = reading(_curt)


@breaks("CFG-TYPE", says="{'dim': True}", **CONFIG)
class TakesTrueForARank(Right):
    PeftConfig = accepting("dim", lambda value: value is True)


@breaks("CFG-TYPE", says="{'dim': '8'}", **CONFIG)
class ReadsNumbersFromText(Right):
    PeftConfig = accepting("dim", lambda value: isinstance(value, str), int)


@breaks("CFG-TYPE", says="{'match_all_linear': ", **CONFIG)
class TakesAnythingForAFlag(Right):
    PeftConfig = accepting("match_all_linear", lambda value: not isinstance(value, bool), bool)


@breaks("CFG-TYPE", says="{'exclude_modules': ", **CONFIG)
class DoesNotLookIntoLists(Right):
    PeftConfig = accepting("exclude_modules", lambda value: isinstance(value, list))


@breaks("CFG-TYPE", says="raised TypeError: '<' not supported", **CONFIG)
class ComparesBeforeItLooks(Right):
    PeftConfig = refusing("dropout", lambda value: value < 0)


@breaks("CFG-RANGE", says="{'dropout': ", **CONFIG)
class TakesAnyDropout(Right):
    PeftConfig = accepting("dropout", lambda value: isinstance(value, float) and not 0 <= value <= 1)


@breaks("CFG-RANGE", says="{'dim': 0}", **CONFIG)
class TakesRankZero(Right):
    PeftConfig = accepting("dim", lambda value: type(value) is int and value == 0)


@breaks("CFG-RANGE", says="{'lora_dtype': ", **CONFIG)
class TakesUnknownDtypesForNone(Right):
    PeftConfig = accepting(
        "lora_dtype",
        lambda value: (
            isinstance(value, str) and value.removeprefix("torch.") not in ("bfloat16", "float16", "float32", "float64")
        ),
        lambda value: getattr(torch, value, None),
    )


@breaks("CFG-RANGE", says="{'lora_A_init': ", **CONFIG)
class TakesAnyMethod(Right):
    PeftConfig = accepting("lora_A_init", lambda value: isinstance(value, str))


@breaks("CFG-RANGE", says="bad value: the message does not name", **CONFIG)
class NamesNoKey(Right):
    @dataclass
    class PeftConfig(reference.PeftConfig):
        def __post_init__(self) -> None:
            try:
                super().__post_init__()
            except ValueError:
                raise ValueError("bad value") from None


@breaks("CFG-NAN", says="{'dropout': nan}", source="nan < 0 or nan > 1 is False", **CONFIG)
class LetsNanThrough(Right):
    PeftConfig = accepting("dropout", lambda value: isinstance(value, float) and math.isnan(value))


@breaks("CFG-NAN", says="{'alpha': ", **CONFIG)
class TakesAnyAlpha(Right):
    PeftConfig = accepting("alpha", lambda value: isinstance(value, float) and not math.isfinite(value))


@breaks("CFG-CONSTRUCTOR", says="expected ValueError", **CONFIG)
class ChecksDictsOnly(Right):
    @dataclass
    class PeftConfig(reference.PeftConfig):
        def __post_init__(self) -> None:
            try:
                super().__post_init__()
            except ValueError:
                self.refused = True

        @classmethod
        def from_dict(cls, d: Any) -> Any:
            reference.PeftConfig.from_dict(d)
            return super().from_dict(d)


@breaks("CFG-NO-DICT", says="returned PeftConfig: expected ValueError", **CONFIG)
class ReadsNoneAsDefaults(Right):
    PeftConfig = reading(lambda d: d or {})


@breaks("CFG-NO-DICT", says="returned PeftConfig: expected ValueError", **CONFIG)
class ReadsPairs(Right):
    PeftConfig = reading(lambda d: dict(d) if isinstance(d, list) else d)


@breaks("CFG-UNKNOWN-FALSY", says="_comment", **CONFIG)
class IgnoresCommentKeys(Right):
    PeftConfig = reading(lambda d: {k: v for k, v in d.items() if not k.startswith("_")} if isinstance(d, dict) else d)


@breaks("CFG-UNKNOWN-FALSY", says="peft_type", **CONFIG)
class IgnoresPeftsType(Right):
    PeftConfig = reading(lambda d: {k: v for k, v in d.items() if k != "peft_type"} if isinstance(d, dict) else d)


@breaks("CFG-RANGE", says="{'lora_dtype': 'complex64'}", **CONFIG)
class TakesComplexNumbers(Right):
    PeftConfig = accepting("lora_dtype", lambda value: value == "complex64", lambda value: getattr(torch, value))
