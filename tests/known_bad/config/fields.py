"""Known-bad twins of fields: the config has wrong fields, defaults or values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import reference
from tests.known_bad import breaks
from tests.known_bad.config.config_classes import CONFIG, NAMES, Right, accepting, read, reading, refusing, remade

ADDED = ("use_dora", "use_rslora", "use_memory_efficient_lora")


@breaks("CFG-DEFAULTS", says="alpha = 16: expected 32", **CONFIG)
class DefaultsToAlphaSixteen(Right):
    @dataclass
    class PeftConfig(reference.PeftConfig):
        alpha: int = 16


@breaks("CFG-DEFAULTS", says="use_triton = True: expected False", **CONFIG)
class DefaultsToTriton(Right):
    @dataclass
    class PeftConfig(reference.PeftConfig):
        use_triton: bool = True


@breaks(
    "CFG-DEFAULTS",
    says="PeftConfig.from_dict({}) has dim = 16",
    source="defaults defined in two places",
    **CONFIG,
)
class StatesADefaultTwice(Right):
    PeftConfig = reading(lambda d: {**d, "dim": d.get("dim", 16)})


@breaks("CFG-FIELDS", says="its fields begin", **CONFIG)
class SortsItsFields(Right):
    PeftConfig = remade(sorted(NAMES))


@breaks("CFG-FIELDS", says="is no dataclass", **CONFIG)
class IsNoDataclass(Right):
    class PeftConfig:
        def __init__(self, **options: Any) -> None:
            vars(self).update(vars(reference.PeftConfig(**options)))

        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return vars(self) == vars(other)

        def to_dict(self) -> Any:
            return reference.PeftConfig(**vars(self)).to_dict()

        from_dict = classmethod(read)


@breaks("CFG-ADDED", says="has no field use_dora, use_rslora", **CONFIG)
class HasTheSeedsFieldsOnly(Right):
    PeftConfig = remade([name for name in NAMES if name not in ADDED], check=False)


@breaks("CFG-VALUES", says="alpha = 32", source="huggingface/peft #2397 (CF4): known keys dropped", **CONFIG)
class DropsAlphaFromDicts(Right):
    PeftConfig = reading(lambda d: {key: value for key, value in d.items() if key != "alpha"})


@breaks("CFG-VALUES", says="use_rslora = ", **CONFIG)
class ReadsDoraForRslora(Right):
    PeftConfig = reading(lambda d: {**d, "use_rslora": d.get("use_dora", False)})


@breaks("CFG-BOUNDS", says="dropout = 0", source="huggingface/peft #3425 (CF6)", **CONFIG)
class TakesZeroForMissing(Right):
    PeftConfig = refusing("dropout", lambda value: value == 0 and not isinstance(value, float))


@breaks("CFG-BOUNDS", says="dropout = 1", **CONFIG)
class RefusesToDropAll(Right):
    PeftConfig = refusing("dropout", lambda value: isinstance(value, int | float) and value == 1)


@breaks("CFG-BOUNDS", says="dim = 1", **CONFIG)
class RefusesRankOne(Right):
    PeftConfig = refusing("dim", lambda value: value == 1)


@breaks("CFG-DTYPE", says="lora_dtype = 'torch.", source="NVIDIA-NeMo/Automodel #173 (CF2)", **CONFIG)
class KeepsTheStringOfADtype(Right):
    PeftConfig = accepting("lora_dtype", lambda value: isinstance(value, str) and value.startswith("torch."))


@breaks("CFG-DTYPE", says="raised ValueError", **CONFIG)
class KnowsDtypesOnly(Right):
    PeftConfig = refusing("lora_dtype", lambda value: isinstance(value, str))


@breaks("CFG-LISTS", says="['*', '_', 'p', 'r', 'o', 'j']", source="NVIDIA-NeMo/Automodel #77 (TM3)", **CONFIG)
class TakesAStringApart(Right):
    PeftConfig = accepting("target_modules", lambda value: isinstance(value, str), list)


@breaks("CFG-LISTS", says="exclude_modules = None: expected []", **CONFIG)
class KeepsNone(Right):
    PeftConfig = accepting("exclude_modules", lambda value: value is None)


SHARED: list[str] = []


@breaks("CFG-FRESH-LISTS", says="expected []", source="a mutable default", **CONFIG)
class SharesItsDefaultList(Right):
    reset = staticmethod(SHARED.clear)

    @dataclass
    class PeftConfig(reference.PeftConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.target_modules:
                SHARED.clear() if len(SHARED) > 8 else None
                self.target_modules = SHARED


@breaks("CFG-EQUAL", says="configs of dropout", **CONFIG)
class ComparesWithoutDropout(Right):
    @dataclass
    class PeftConfig(reference.PeftConfig):
        dropout: float = field(default=0.0, compare=False)


@breaks("CFG-EQUAL", says="are not equal", **CONFIG)
class ComparesByIdentity(Right):
    class PeftConfig(reference.PeftConfig):
        __eq__, __hash__ = object.__eq__, object.__hash__


@breaks("CFG-COPY", says="raised TypeError", **CONFIG)
class CannotBePickled(Right):
    @dataclass
    class PeftConfig(reference.PeftConfig):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise TypeError("cannot pickle PeftConfig")


@breaks("CFG-COPY", says="deepcopy shares target_modules", phrase="shares its lists with its copies", **CONFIG)
class CopiesShareLists(Right):
    @dataclass
    class PeftConfig(reference.PeftConfig):
        def __deepcopy__(self, memo: Any) -> Any:
            clone = dataclasses.replace(self)
            clone.target_modules = self.target_modules
            return clone


def _patterns(change: Any) -> Any:
    @dataclass
    class PeftConfig(reference.PeftConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.target_modules = change(self.target_modules)

    return PeftConfig


@breaks("CFG-VALUES", says="has target_modules = ", **CONFIG)
class StripsPatterns(Right):
    PeftConfig = _patterns(lambda patterns: [p.strip() for p in patterns])


@breaks("CFG-VALUES", says="has target_modules = ", **CONFIG)
class SplitsPatternsAtCommas(Right):
    PeftConfig = _patterns(lambda patterns: [part for p in patterns for part in p.split(",")])


@breaks("CFG-VALUES", says="has target_modules = ", **CONFIG)
class KeepsEachPatternOnce(Right):
    PeftConfig = _patterns(lambda patterns: list(dict.fromkeys(patterns)))


@breaks("CFG-VALUES", says="has target_modules = ", **CONFIG)
class LowersPatterns(Right):
    PeftConfig = _patterns(lambda patterns: [p.lower() for p in patterns])


@breaks("CFG-VALUES", says="has alpha = ", **CONFIG)
class RoundsAlphaDown(Right):
    PeftConfig = accepting("alpha", lambda value: isinstance(value, float) and 0 <= value < 1e9, int)


@breaks("CFG-EQUAL", says="are equal", **CONFIG)
class ComparesSets(Right):
    @dataclass
    class PeftConfig(reference.PeftConfig):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            lists = ("target_modules", "exclude_modules")
            one, two = ({k: set(v) if k in lists else v for k, v in vars(c).items()} for c in (self, other))
            return one == two


POOL: dict[str, Any] = {}


@breaks("CFG-FRESH-LISTS", says="expected ['q_proj']", **CONFIG)
class KeepsOneOfEqualConfigs(Right):
    reset = staticmethod(POOL.clear)

    @dataclass
    class PeftConfig(reference.PeftConfig):
        @classmethod
        def from_dict(cls, d: Any) -> Any:
            made = super().from_dict(d)
            return POOL.setdefault(repr(made), made)
