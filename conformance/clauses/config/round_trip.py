"""`to_dict` and `from_dict`: the round trip, JSON, and no object shared with or changed for the caller."""

from __future__ import annotations

import copy
import json
from typing import Any

from conformance.clauses.config.field_values import (
    CONFIGS,
    ConfigCase,
    each_value,
    field_of,
    fields_of,
    from_dict,
    make,
    options_of,
    same,
    to_dict,
)
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

TAKEN = CONFIGS.narrowed(chosen=("target_modules", "exclude_modules"))


@clause(
    "CFG-ROUND-TRIP",
    sentence="from_dict(to_dict(c)) == c for every config c, and to_dict of the config read back equals to_dict(c).",
    cases=CONFIGS,
    dtypes=(),
)
def test_round_trip(subject: Subject, case: ConfigCase) -> None:
    for options in (options_of(subject, case), *each_value(subject)):
        config = make(subject, **options)
        values = to_dict(config)
        back = from_dict(subject, values)
        _require_equal(subject, back, config, f"from_dict(to_dict(c)) for c = {config!r}")
        require(to_dict(back) == values, f"to_dict of the config read back is {to_dict(back)}: expected {values}")


@clause(
    "CFG-JSON",
    sentence="to_dict(c) is JSON-serialisable, and the config read back from the JSON text equals c.",
    cases=CONFIGS,
    dtypes=(),
)
def test_json(subject: Subject, case: ConfigCase) -> None:
    for options in (options_of(subject, case), *each_value(subject)):
        config = make(subject, **options)
        values = to_dict(config)
        with calling(f"json.dumps(to_dict()) of {values}"):
            text = json.dumps(values, allow_nan=False)
        _require_equal(subject, from_dict(subject, json.loads(text)), config, f"the config read back from {text}")


def _require_equal(subject: Subject, back: Any, config: Any, what: str) -> None:
    for key in fields_of(subject):
        got, wanted = field_of(back, key), field_of(config, key)
        require(same(got, wanted), f"{what} has {key} = {got!r}: expected {wanted!r}")
    require(type(back) is type(config), f"{what} is a {type(back).__name__}: expected a {type(config).__name__}")
    require(back == config, f"{what} has the fields of the original but is not equal to it")


@clause(
    "CFG-DICT",
    sentence="""to_dict has one key for each field and no others; lists are lists, and lora_dtype is a name such as
    "bfloat16" or None.""",
    cases=CONFIGS,
    dtypes=(),
)
def test_dict(subject: Subject, case: ConfigCase) -> None:
    for options in (options_of(subject, case), *each_value(subject)):
        config = make(subject, **options)
        values = to_dict(config)
        expected = {key: field_of(config, key) for key in fields_of(subject)} | options
        missing, extra = sorted(set(expected) - set(values)), sorted(key for key in values if not hasattr(config, key))
        require(not missing, f"to_dict() lacks {', '.join(missing)}")
        require(not extra, f"to_dict() has {', '.join(extra)}, which the config has no field for")
        for key, wanted in expected.items():
            got = values[key]
            require(same(got, wanted), f"to_dict()[{key!r}] is {got!r}: expected {wanted!r}")


@clause(
    "CFG-ORDER",
    sentence="""The keys of to_dict are in the order of the dataclass's fields, in whatever order the options were
    given.""",
    cases=CONFIGS,
    level="SHOULD",
    dtypes=(),
    weight=0.5,
)
def test_order(subject: Subject, case: ConfigCase) -> None:
    options, order = options_of(subject, case), fields_of(subject)
    for shuffled in (options, dict(reversed(options.items()))):
        keys = [key for key in to_dict(from_dict(subject, shuffled)) if key in order]  # a target may have more
        require(keys == order, f"to_dict() has its keys in the order {keys}: expected {order}")


@clause(
    "CFG-OWN-DICT",
    sentence="""to_dict shares no mutable object with the config: changing the dict changes neither the config nor
    another dict from to_dict.""",
    cases=TAKEN,
    dtypes=(),
)
def test_own_dict(subject: Subject, case: ConfigCase) -> None:
    config = make(subject, **options_of(subject, case))
    before, values = to_dict(config), to_dict(config)
    expected = copy.deepcopy(before)
    for key in ("target_modules", "exclude_modules"):
        with calling(f"to_dict()[{key!r}].append('touched')"):
            values[key].append("touched")
    values["dim"] = -1
    require(to_dict(config) == expected, f"appending to the lists of to_dict() changed the config: {config!r}")
    require(before == expected, f"appending to the lists of one to_dict() changed another: {before}")


@clause(
    "CFG-OWN-LISTS",
    sentence="A config holds its own lists: changing a list that it was made or read from does not change it.",
    cases=TAKEN.narrowed(way=("dict", "keywords")),
    dtypes=(),
)
def test_own_lists(subject: Subject, case: ConfigCase) -> None:
    options = options_of(subject, case)
    given = copy.deepcopy(options)
    config = from_dict(subject, given) if case.way == "dict" else make(subject, **given)
    for value in given.values():
        if isinstance(value, list):
            value.append("touched")
    got = getattr(config, case.chosen, None)
    wanted = options.get(case.chosen)
    require(
        case.chosen == "none" or got == wanted,
        f"{case.chosen} is {got} after the caller appended to the list it gave: expected {wanted}",
    )


@clause(
    "CFG-ARGUMENT",
    sentence="from_dict does not modify its argument.",
    cases=CONFIGS,
    dtypes=(),
)
def test_argument(subject: Subject, case: ConfigCase) -> None:
    values = to_dict(make(subject, **options_of(subject, case)))
    if case.chosen != "target_modules":
        values["target_modules"] = None
    if case.seed % 2:
        values["lora_dtype"] = "torch.bfloat16"
    before = copy.deepcopy(values)
    from_dict(subject, values)
    changed = {key: values.get(key, "(gone)") for key in before if key not in values or values[key] != before[key]}
    new = sorted(set(values) - set(before))
    require(not changed and not new, f"from_dict changed its argument: {changed or new}; it was {before}")
