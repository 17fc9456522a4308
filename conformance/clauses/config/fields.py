"""The fields of a config: their names, defaults, and the values they accept."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import torch

from conformance.clauses.config.field_values import (
    ADDED,
    CHOICES,
    CONFIGS,
    DEFAULTS,
    KEYS,
    ConfigCase,
    defaults_of,
    each_value,
    from_dict,
    held,
    make,
    options_of,
    require_fields,
)
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


@clause(
    "CFG-DEFAULTS",
    sentence="""PeftConfig() and from_dict({}) have the defaults: target_modules and exclude_modules empty, dim 8,
    alpha 32, dropout 0.0, dropout_position "post", lora_A_init "xavier", lora_dtype None, and match_all_linear,
    use_triton, use_dora and use_rslora False; use_memory_efficient_lora may have any default.""",
    cases=CONFIGS.narrowed(way=("PeftConfig()", "PeftConfig.from_dict({})")),
    dtypes=(),
    weight=0.5,
)
def test_defaults(subject: Subject, case: ConfigCase) -> None:
    config = from_dict(subject, {}) if "from" in case.way else make(subject)
    require_fields(config, defaults_of(subject), case.way or "PeftConfig()")


@clause(
    "CFG-FIELDS",
    sentence="""PeftConfig is a dataclass whose fields begin with target_modules, exclude_modules, match_all_linear,
    dim, alpha, dropout, dropout_position, lora_A_init, lora_dtype and use_triton, in this order.""",
    why="Positional arguments depend on the order.",
    cases=CONFIGS,
    dtypes=(),
    weight=0.1,
)
def test_fields(subject: Subject, case: ConfigCase) -> None:  # noqa: ARG001
    require(dataclasses.is_dataclass(subject.thing), "PeftConfig is no dataclass")
    names = [f.name for f in dataclasses.fields(subject.thing) if f.init]
    expected = [key for key in DEFAULTS if key not in ADDED]
    require(names[: len(expected)] == expected, f"its fields begin {names[: len(expected)]}: expected {expected}")


@clause(
    "CFG-ADDED",
    sentence="PeftConfig has the fields use_dora, use_rslora and use_memory_efficient_lora.",
    cases=CONFIGS,
    level="SHOULD",
    dtypes=(),
    weight=0.1,
)
def test_added(subject: Subject, case: ConfigCase) -> None:  # noqa: ARG001
    missing = [key for key in ADDED if not hasattr(make(subject), key)]
    require(not missing, f"PeftConfig has no field {', '.join(missing)}")


@clause(
    "CFG-VALUES",
    sentence="An option given by keyword or in a dict sets its field, and the other fields keep their defaults.",
    cases=CONFIGS.narrowed(way=("keywords", "dict")),
    dtypes=(),
)
def test_values(subject: Subject, case: ConfigCase) -> None:
    defaults = defaults_of(subject)
    for options in (options_of(subject, case), *each_value(subject)):
        # CFG-DTYPE judges names of dtypes
        given = {key: held(value) if key == "lora_dtype" else copy.deepcopy(value) for key, value in options.items()}
        config = make(subject, **given) if case.way == "keywords" else from_dict(subject, given)
        require_fields(config, defaults | options, f"a config of {options} by {case.way or 'dict'}")


@clause(
    "CFG-BOUNDS",
    sentence="""Values at the ends of their ranges are accepted: dropout 0 and 1 (int or float), dim 1, alpha 1, an
    empty list, lora_dtype None, and False.""",
    cases=KEYS.narrowed(
        key=("dropout", "dim", "alpha", "target_modules", "lora_dtype", "use_triton"),
        way=("dict", "keywords"),
    ),
    dtypes=(),
    weight=0.5,
)
def test_bounds(subject: Subject, case: ConfigCase) -> None:
    bounds: dict[str, tuple[Any, ...]] = {
        "dropout": (0, 0.0, 1, 1.0),
        "dim": (1,),
        "alpha": (1,),
        "target_modules": ([],),
        "lora_dtype": (None,),
        "use_triton": (False,),
    }
    for value in bounds[case.key]:
        config = from_dict(subject, {case.key: value}) if case.way == "dict" else make(subject, **{case.key: value})
        require_fields(config, {case.key: value}, f"a config of {case.key} = {value!r}")


@clause(
    "CFG-DTYPE",
    sentence="""lora_dtype may be given as a torch.dtype or by name, as "bfloat16" or "torch.bfloat16", and the
    field holds a torch.dtype.""",
    cases=CONFIGS.narrowed(way=("torch.dtype", "name", "torch.name"), bad=(0, 1, 2, 3), chosen=("none",)),
    dtypes=(),
)
def test_dtype(subject: Subject, case: ConfigCase) -> None:
    name = CHOICES["lora_dtype"][case.bad]
    dtype = getattr(torch, name)
    given = {"torch.dtype": dtype, "name": name, "torch.name": f"torch.{name}"}.get(case.way, name)
    for config, how in (
        (make(subject, lora_dtype=given), f"PeftConfig(lora_dtype={given!r})"),
        (from_dict(subject, {"lora_dtype": given}), f"PeftConfig.from_dict({{'lora_dtype': {given!r}}})"),
    ):
        require_fields(config, {"lora_dtype": dtype}, how)


@clause(
    "CFG-LISTS",
    sentence="For target_modules and exclude_modules, None means an empty list and a plain string means one pattern.",
    cases=KEYS.narrowed(key=("target_modules", "exclude_modules"), way=("dict", "keywords")),
    dtypes=(),
    weight=0.5,
)
def test_lists(subject: Subject, case: ConfigCase) -> None:
    for given, wanted in ((None, []), ("*_proj", ["*_proj"]), (["a", "b"], ["a", "b"]), ([], [])):
        options = {case.key: given}
        config = from_dict(subject, options) if case.way == "dict" else make(subject, **options)
        require_fields(config, {case.key: wanted}, f"a config of {options}")


@clause(
    "CFG-FRESH-LISTS",
    sentence="Two configs never share a list.",
    why="With one default list for all configs, a change to one config would change the others.",
    cases=KEYS.narrowed(key=("target_modules", "exclude_modules")),
    dtypes=(),
    weight=0.5,
)
def test_fresh_lists(subject: Subject, case: ConfigCase) -> None:
    given: dict[str, Any] = {case.key: ["q_proj"]}
    first, second = from_dict(subject, given), from_dict(subject, given)
    with calling(f"PeftConfig.from_dict({given}).{case.key}.append('touched')"):
        getattr(first, case.key).append("touched")
    require_fields(second, given, f"after another config's {case.key}.append('touched') PeftConfig.from_dict({given})")
    first, second = make(subject), make(subject)
    with calling(f"PeftConfig().{case.key}.append('touched')"):
        getattr(first, case.key).append("touched")
    require_fields(second, {case.key: []}, f"after another config's {case.key}.append('touched') PeftConfig()")
    require_fields(
        make(subject),
        {case.key: []},
        f"after another config's {case.key}.append('touched') a new PeftConfig()",
    )


@clause(
    "CFG-EQUAL",
    sentence="Two configs are equal if and only if all their fields are equal.",
    cases=CONFIGS,
    dtypes=(),
)
def test_equal(subject: Subject, case: ConfigCase) -> None:
    options = options_of(subject, case)
    config = make(subject, **copy.deepcopy(options))
    twin = make(subject, **copy.deepcopy(options))
    require(config == twin, f"two configs of {options} are not equal")
    for alone in each_value(subject):
        ((key, value),) = alone.items()
        unequal = make(subject, **alone) != make(subject, **{key: copy.deepcopy(DEFAULTS[key])})
        require(unequal, f"configs of {key} = {value!r} and of {DEFAULTS[key]!r} are equal")
    orders = [make(subject, target_modules=list(patterns)) for patterns in ("ab", "ba", "aab")]
    for i, j in ((0, 1), (0, 2)):
        lists = f"{orders[i].target_modules} and of {orders[j].target_modules}"
        require(orders[i] != orders[j], f"configs of target_modules = {lists} are equal")


@clause(
    "CFG-COPY",
    sentence="""copy, deepcopy, pickle and dataclasses.replace give an equal config; a deepcopy and a pickled copy
    share no list with the original.""",
    cases=CONFIGS.narrowed(way=("copy", "deepcopy", "pickle", "replace")),
    level="SHOULD",
    dtypes=(),
)
def test_copy(subject: Subject, case: ConfigCase) -> None:
    options = options_of(subject, case)
    config = make(subject, **options)
    ways: dict[str, Any] = {
        "": copy.copy,
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda c: pickle.loads(pickle.dumps(c)),
        "replace": dataclasses.replace,
    }
    with calling(f"{case.way or 'copy'} of a config"):
        clone = ways[case.way](config)
    require(clone == config, f"{case.way} of PeftConfig({options}) is {clone!r}, not equal to it")
    if case.way in ("deepcopy", "pickle"):
        with calling("clone.target_modules.append('touched')"):
            clone.target_modules.append("touched")
        require("touched" not in config.target_modules, f"{case.way} shares target_modules with the original")
