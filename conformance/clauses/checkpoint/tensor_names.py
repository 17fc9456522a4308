"""Layer names that contain other names, and parameters that are not contiguous: each tensor keeps its place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from conformance.clauses.checkpoint.peft_files import TENSORS, tensors_in
from conformance.clauses.checkpoint.target_calls import (
    ONE,
    PLAIN,
    FileCase,
    equal_bits,
    expected_tensors,
    fill,
    folder,
    load,
    save,
    trained,
)
from conformance.clauses.model.compiled_model import compiled
from conformance.clauses.model.small_models import adapters, model_named
from conformance.clauses.model.target_calls import make_config
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import fault_of
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

# Each name contains another one, or a word with a meaning in a file or a library.
NAMES = (
    "proj",
    "inner.proj",
    "q_proj",
    "Q_proj",
    "default_proj",
    "adapter.default.proj",
    "blocks.1.fc",
    "blocks.10.fc",
    "base_model.model.proj",
    "lora_model.fc",
)


@clause(
    "CKP-NAMES",
    sentence="""Each tensor is saved under, and loaded into, the layer with exactly its name, even if this name ends
    with, begins with or contains another layer's name, contains `default`, `lora_` or `base_model.model.`, or differs
    from another only in case. Parameters may be contiguous in memory or not.""",
    cases=PLAIN.narrowed(r=(2, 1), chosen=("all",)),
    dtypes=ONE,
    weight=0.5,
)
def test_names(subject: Subject, case: FileCase) -> None:
    model, other = _adapted(subject, case), _adapted(subject, case)
    fill(model, case.seed)
    with folder() as path:
        config = make_config(subject, **case.options())
        save(subject, model, config, path)
        found, expected = tensors_in(Path(path)), expected_tensors(model)
        load(subject, other, path)
    wrong = sorted(set(found) ^ set(expected))
    with fault_of("save_adapter"):
        require(not wrong, f"{TENSORS} lacks or should not have {', '.join(wrong)}")
    for name, tensor in expected.items():
        with fault_of("save_adapter"):
            require(equal_bits(found[name], tensor), f"{name} has other values than the layer's parameter")
        with fault_of("load_adapter"):
            require(equal_bits(expected_tensors(other)[name], tensor), f"{name} was loaded with other values")


def _adapted(subject: Subject, case: FileCase) -> nn.Module:
    model = model_named(NAMES).to(subject.device)
    config = make_config(subject, **case.options())
    with calling_quietly("apply_lora_to_linear_modules(model, config)"):
        subject.target.apply_lora_to_linear_modules(model, config)
    for parameter in adapters(model).values():
        parameter.data = parameter.detach().t().contiguous().t().fill_(0.25)  # a parameter need not be contiguous
    return model


@clause(
    "CKP-COMPILED",
    sentence="""Where torch.compile has wrapped a model or a part of it, its adapters are saved under, and loaded by,
    the names that the layers have in the model itself, without `_orig_mod`.""",
    why="Files that are saved of a compiled model would not load into the same model, and the other way round.",
    cases=PLAIN.narrowed(r=(2, 1), chosen=("all",), how=("the model", "a block")),
    level="SHOULD",  # names in torch have the wrapper's
    dtypes=ONE,
    weight=0.4,
)
def test_compiled_models(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    other, _ = trained(subject, dataclasses.replace(case, seed=case.seed + 1))
    expected, own = expected_tensors(model), adapters(other)
    values = {name: tensor.detach().clone() for name, tensor in adapters(model).items()}
    with folder() as path, folder() as plain:
        save(subject, model, config, plain)
        save(subject, compiled(model, case.how), config, path)
        wrong = sorted(set(tensors_in(Path(path))) ^ set(expected))
        with fault_of("save_adapter"):
            require(not wrong, f"torch.compile has wrapped {case.how}: {TENSORS} has other names: {', '.join(wrong)}")
        load(subject, compiled(other, case.how), plain)
    for name, value in values.items():
        with fault_of("load_adapter"):
            same = equal_bits(value, own[name].detach())
            require(same, f"torch.compile has wrapped {case.how}: {name} was loaded with other values")
