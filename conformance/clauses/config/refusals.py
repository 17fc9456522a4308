"""Keys and values that a config refuses, with errors that name the key, the value and the nearest valid key."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

from conformance.clauses.config.field_values import CONFIGS, DEFAULTS, KEYS, ConfigCase, fields_of
from conformance.specification.clause import clause
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

NUMBER: tuple[Any, ...] = ("8", None, [8], True, {})
TEXT: tuple[Any, ...] = (3, None, True, ["post"])
FLAG = ("true", 1, 0, None, "False", [True])
PATTERNS = (3, [3], ["q_proj", None], {"q_proj": 1}, True, [["q_proj"]], 0)
WRONG_TYPE: dict[str, tuple[Any, ...]] = {
    "target_modules": PATTERNS,
    "exclude_modules": PATTERNS,
    "match_all_linear": FLAG,
    "dim": (*NUMBER, 8.0, 7.5),
    "alpha": NUMBER,
    "dropout": ("0.1", None, [0.1], True, {}),
    "dropout_position": TEXT,
    "lora_A_init": TEXT,
    "lora_dtype": (16, True, ["bfloat16"], float),
    "use_triton": FLAG,
    "use_dora": FLAG,
    "use_rslora": FLAG,
    "use_memory_efficient_lora": FLAG,
}
OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "dim": (0, -1, -8),
    "dropout": (-0.1, 1.5, math.inf, -math.inf, 100, 1.0000001, -1e-9),
    "dropout_position": ("middle", "", "Post", "both"),
    "lora_A_init": ("gaussian", "", "Xavier", "xavier_normal_"),
    "lora_dtype": ("float17", "torch.bf16x", "", "int8", "Linear", "torch.nn", "complex64"),
}
EACH = CONFIGS.narrowed(chosen=("none",), set=(0,))
# Fields that are nearest to their own misspelt name, with one letter changed, by any measure of distance.
LONG = tuple(key for key in DEFAULTS if len(key) >= 5 and not key.startswith("use_"))


@clause(
    "CFG-UNKNOWN",
    sentence="An unknown key raises a ValueError that names the key, its value and the nearest valid key.",
    cases=KEYS.narrowed(key=LONG, way=("doubled", "dropped", "swapped", "case")),
    dtypes=(),
)
def test_unknown(subject: Subject, case: ConfigCase) -> None:
    wrong, value = misspelt(case.key, case.way, case.seed), 1000 + case.seed
    values: dict[str, Any] = {"dim": 4, wrong: value}
    _refused(subject, values, wrong, value, case.key)


def misspelt(key: str, way: str, seed: int) -> str:
    """A key with one letter doubled, dropped, swapped with its neighbour, or in the other case."""
    chance = random.Random(f"{key} {seed}")
    i = chance.choice([j for j in range(1, len(key) - 1) if key[j] != key[j + 1] and key[j].isalpha()])
    return {
        "doubled": key[:i] + key[i] + key[i:],
        "dropped": key[:i] + key[i + 1 :],
        "swapped": key[:i] + key[i + 1] + key[i] + key[i + 2 :],
    }.get(way, key[:i] + key[i].swapcase() + key[i + 1 :])


@clause(
    "CFG-UNKNOWN-FALSY",
    sentence="""An unknown key raises a ValueError that names it, even if its value is None, False, 0, an empty list
    or an empty string, and whatever the other keys are.""",
    why="A key that is dropped silently is an option that the caller believes to be set.",
    cases=CONFIGS.narrowed(bad=(0, 1, 2, 3, 4)),
    dtypes=(),
    weight=0.5,
)
def test_unknown_falsy(subject: Subject, case: ConfigCase) -> None:
    values = {key: value for key, value in case.options().items() if key in fields_of(subject)}
    for key in ("modules_to_save", "_comment", "peft_type", "bias"):
        given = values | {key: (None, False, 0, [], "")[case.bad]}
        call = f"PeftConfig.from_dict({given!r})"
        refuses(call, lambda given=given: subject.thing.from_dict(copy.deepcopy(given)), key)  # type: ignore[misc]


@clause(
    "CFG-TYPE",
    sentence="""A value of a wrong type raises a ValueError that names the key and, unless it is a list or dict, the
    value; a bool is not a number, and 1 and "true" are not bools.""",
    cases=EACH,
    dtypes=(),
)
def test_type(subject: Subject, case: ConfigCase) -> None:  # noqa: ARG001
    for key, value in _each(subject, WRONG_TYPE):
        _refused(subject, {key: value}, key, value)


@clause(
    "CFG-RANGE",
    sentence="""A value out of range, or a name that does not exist, raises a ValueError that names the key and the
    value.""",
    cases=EACH,
    dtypes=(),
)
def test_range(subject: Subject, case: ConfigCase) -> None:  # noqa: ARG001
    for key, value in _each(subject, OUT_OF_RANGE):
        _refused(subject, {key: value}, key, value)


@clause(
    "CFG-NAN",
    sentence="""NaN for dropout, alpha or dim, and an infinite alpha, raise a ValueError that names the key and the
    value.""",
    cases=KEYS.narrowed(key=("dropout", "alpha", "dim")),
    dtypes=(),
    weight=0.5,
)
def test_nan(subject: Subject, case: ConfigCase) -> None:
    _refused(subject, {case.key: math.nan}, case.key, math.nan)
    if case.key == "alpha":
        for value in (math.inf, -math.inf):
            _refused(subject, {"alpha": value}, "alpha", value)


@clause(
    "CFG-CONSTRUCTOR",
    sentence="PeftConfig(…) refuses the same values as from_dict, by a ValueError or TypeError that names the key.",
    cases=EACH,
    level="SHOULD",
    dtypes=(),
)
def test_constructor(subject: Subject, case: ConfigCase) -> None:  # noqa: ARG001
    for table in (WRONG_TYPE, OUT_OF_RANGE):
        for key, value in _each(subject, table):
            refuses(
                f"PeftConfig({key}={value!r})",
                lambda given={key: value}: subject.thing(**given),  # type: ignore[misc]
                key,
                types=(ValueError, TypeError),
            )


@clause(
    "CFG-NO-DICT",
    sentence="""from_dict raises a ValueError or TypeError if its argument is not a dict or has a key that is not a
    string.""",
    cases=CONFIGS.narrowed(bad=(0, 1, 2, 3, 4)),
    level="SHOULD",
    dtypes=(),
    weight=0.5,
)
def test_no_dict(subject: Subject, case: ConfigCase) -> None:
    value: Any = (None, [("dim", 8)], "dim", 8, {8: 8})[case.bad]
    refuses(
        f"PeftConfig.from_dict({value!r})",
        lambda: subject.thing.from_dict(value),
        types=(ValueError, TypeError),
    )


def _each(subject: Subject, table: dict[str, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
    """Every bad value of every field that the target has."""
    for key in fields_of(subject):
        for bad in table.get(key, ()):
            yield key, copy.deepcopy(bad)


def _refused(subject: Subject, values: dict[str, Any], key: str, value: Any, *also: str) -> None:
    """Require that from_dict refuses a dict, with a message that names the key, the value, and `also`."""
    # a message may name the whole list or the wrong element of it
    shown = "" if isinstance(value, list | dict) else value if isinstance(value, str) else repr(value)
    shown = value.__name__ if isinstance(value, type) else shown
    refuses(f"PeftConfig.from_dict({values!r})", lambda: subject.thing.from_dict(values), key, shown, *also)
