"""The config file of a saved adapter, and the config that loading returns."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from conformance.clauses.checkpoint.peft_files import CONFIG, REST, config_in, peft_config, put, tensors_in
from conformance.clauses.checkpoint.target_calls import (
    FILES,
    ONE,
    PLAIN,
    FileCase,
    folder,
    load,
    output,
    raised,
    save,
    toy,
    trained,
)
from conformance.clauses.config.field_values import require_fields
from conformance.clauses.model.small_models import adapted, model_named
from conformance.clauses.model.target_calls import in_its_rule, make_config
from conformance.judgement.outcomes import require
from conformance.specification.clause import SHOULD, clause
from conformance.target.adapter_tensors import scale_of
from conformance.target.calls import fault_of
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

AMBIGUOUS = ("fc", "inner.fc", "a.fc1", "b.a.fc1")  # the first is a suffix of the second, the third of the fourth


@clause(
    "CKP-CONFIG",
    sentence="""adapter_config.json has PEFT's fields: peft_type "LORA", r = dim, lora_alpha = alpha, lora_dropout =
    dropout, use_dora, use_rslora, bias "none" or absent, fan_in_fan_out false, null or absent, modules_to_save null,
    empty or absent. An absent field counts as PEFT's default.""",
    cases=FILES,
    dtypes=ONE,
)
def test_config(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    with folder() as path:
        save(subject, model, config, path)
        values = config_in(Path(path))
    expected = {
        "peft_type": "LORA",
        "r": case.r,
        "lora_alpha": case.alpha,
        "lora_dropout": case.dropout,
        "use_dora": case.dora,
        "use_rslora": case.rslora,
    }
    # PEFT's defaults of absent fields
    defaults = {"lora_alpha": 8, "r": 8, "lora_dropout": 0.0, "use_dora": False, "use_rslora": False}
    with fault_of("save_adapter"):
        for key, wanted in expected.items():
            got = values.get(key, defaults.get(key))
            require(got == wanted, f"{CONFIG} has {key} = {got!r}: expected {wanted!r}")
        for key, allowed in (("bias", ("none",)), ("fan_in_fan_out", (False, None)), ("modules_to_save", (None, []))):
            got = values.get(key, allowed[0])
            require(got in allowed, f"{CONFIG} has {key} = {got!r}: expected {allowed[0]!r}")


@clause(
    "CKP-TARGETS",
    sentence="""By PEFT's rule target_modules match exactly the adapted modules and no other linear module. In PEFT's
    rule a listed name matches a module whose full name equals it or ends with it after a dot, and a string is a
    regular expression for the full name.""",
    why="PEFT would otherwise put untrained adapters into other layers.",
    cases=PLAIN.narrowed(how=("toy", "ambiguous"), place=tuple(range(len(AMBIGUOUS)))),
    dtypes=ONE,
)
def test_targets(subject: Subject, case: FileCase) -> None:
    if case.how == "toy":
        model, config = trained(subject, case)
    else:
        model = model_named(AMBIGUOUS)
        name = AMBIGUOUS[case.place]
        # as a pattern without a dot, the name would also match a longer name's last component
        chosen = {"target_modules": [name if "." in name else f"{name}.*"]}
        config = make_config(subject, dim=1, **in_its_rule(subject, model, chosen))
        with calling_quietly("apply_lora_to_linear_modules(model, config)"):
            subject.target.apply_lora_to_linear_modules(model, config)
    names = [name for name, m in model.named_modules() if hasattr(m, "in_features") and "lora_" not in name]
    with folder() as path:
        save(subject, model, config, path)
        values = config_in(Path(path))
    targets, excluded = values.get("target_modules"), values.get("exclude_modules")
    found = sorted(name for name in names if _chosen(targets, name) and not _chosen(excluded, name))
    with fault_of("save_adapter"):
        require(
            found == adapted(model),
            f"PEFT takes target_modules = {targets!r} for {found}: adapted are {adapted(model)}",
        )


def _chosen(targets: Any, name: str) -> bool:
    """Whether PEFT adapts a module with this name for these targets."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets or ())


@clause(
    "CKP-CONFIG-BACK",
    sentence="load_adapter returns a config equal to the one that was saved, whatever its options.",
    cases=FILES,
    dtypes=ONE,
)
def test_config_back(subject: Subject, case: FileCase) -> None:
    changed: dict[str, Any] = {"lora_A_init": "kaiming"} if case.seed % 2 else {"lora_dtype": "float64"}
    model, config = trained(subject, case, **changed)
    other, _ = trained(subject, case, **changed)
    with folder() as path:
        save(subject, model, config, path)
        back = load(subject, other, path)
    require(back == config, f"load_adapter returned {back!r}: expected {config!r}")


@clause(
    "CKP-CONFIG-PEFT",
    sentence="""For a file written by PEFT, load_adapter returns a config with the file's r, lora_alpha, lora_dropout,
    use_dora and use_rslora, with dropout_position "pre" if there is dropout, and with target_modules that choose
    exactly the adapted modules.""",
    why='PEFT applies dropout to x, which is the position "pre".',
    cases=FILES,
    dtypes=ONE,
)
def test_config_of_peft(subject: Subject, case: FileCase) -> None:
    model, _ = trained(subject, case)
    with folder() as path:
        save(subject, model, _, path)
        tensors = tensors_in(Path(path))
    options = {"use_rslora": case.rslora, "use_dora": case.dora, "lora_dropout": case.dropout}
    with folder() as path:
        back = load(
            subject, model, put(Path(path), peft_config(case.r, case.alpha, adapted(model), **options), tensors)
        )
    expected: dict[str, Any] = {"dim": case.r, "alpha": case.alpha, "dropout": case.dropout, "use_rslora": case.rslora}
    expected |= {"use_dora": case.dora, **({"dropout_position": "pre"} if case.dropout else {})}
    with fault_of("load_adapter"):
        require_fields(back, expected, "the config that load_adapter returned")
        plain = toy(subject, case)
        with calling_quietly("apply_lora_to_linear_modules(model, the config that load_adapter returned)"):
            subject.target.apply_lora_to_linear_modules(plain, back)
        require(adapted(plain) == adapted(model), f"its targets adapt {adapted(plain)}: expected {adapted(model)}")


@clause(
    "CKP-ABSENT",
    sentence="""A field that adapter_config.json leaves out has PEFT's default, in particular lora_alpha = 8 and no
    rsLoRA; or the file is refused with a ValueError.""",
    cases=PLAIN.narrowed(alpha=(8,), r=(8, 2)),
    dtypes=("float64",),
    weight=0.5,
)
def test_absent_fields(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    with folder() as path:
        save(subject, model, config, path)
        tensors = tensors_in(Path(path))
    values = peft_config(case.r, 8, adapted(model))
    for key in ("lora_alpha", "use_rslora", "use_dora", "lora_dropout", "fan_in_fan_out"):
        del values[key]
    other, _ = trained(subject, case)
    with folder() as path:
        put(Path(path), values, tensors)
        error = raised(lambda: subject.target.load_adapter(other, str(path)))
    if isinstance(error, ValueError):
        return
    require(error is None, f"load_adapter raised {error!r}")
    with fault_of("load_adapter"):
        layers: list[Any] = [m for m in other.modules() if hasattr(m, "lora_A")]
        scales = {scale for layer in layers if (scale := scale_of(layer)) is not None}
        require(all(math.isclose(s, 8 / case.r) for s in scales), f"the scale is {scales}: expected 8 ÷ {case.r}")
        off = (output(other) - output(model)).abs().max().item()
        require(off == 0, f"the output is off by {off:.3g}")


@clause(
    "CKP-NEMO",
    sentence="""If NeMo Automodel wrote automodel_peft_config.json, a dict of its options without dim and alpha,
    load_adapter reads from it the options for which PEFT has no field.""",
    cases=FILES.narrowed(dropout=(0.25,)),
    dtypes=ONE,
    level=SHOULD,
    weight=0.5,
)
def test_config_of_nemo(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case, lora_A_init="uniform")
    with folder() as path:
        save(subject, model, config, path)
        tensors = tensors_in(Path(path))
    rest = {key: value for key, value in config.to_dict().items() if key not in ("dim", "alpha")}
    values = peft_config(case.r, case.alpha, adapted(model), use_rslora=case.rslora, use_dora=case.dora)
    values["lora_dropout"] = case.dropout
    with folder() as path:
        put(Path(path), values, tensors)
        Path(path, REST).write_text(json.dumps(rest), encoding="utf-8")
        back = load(subject, model, path)
    require(back == config, f"load_adapter returned {back!r}: expected {config!r}")
