"""Side effects of loading: only the adapters' values change; dtypes and the state of the process do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.clauses.checkpoint.peft_files import CONFIG, PREFIX, config_in, put, tensors_in
from conformance.clauses.checkpoint.target_calls import (
    FILES,
    ONE,
    PLAIN,
    FileCase,
    culprit,
    equal_bits,
    expected_tensors,
    fails,
    folder,
    load,
    output,
    raised,
    require_same,
    save,
    snapshot,
    tie,
    toy,
    trained,
)
from conformance.clauses.model.small_models import adapted, adapters
from conformance.isolation.process_state import kept
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import fault_of
from conformance.target.subject import Subject


@clause(
    "CKP-LOAD-EFFECTS",
    sentence="""Loading into a model with adapters changes the values of the adapters only. It changes no base weight
    or buffer, no gradient or training flag, no Parameter object, and no random state or global setting.""",
    cases=FILES.narrowed(how=("training", "evaluating", "frozen adapters", "trainable norms")),
    dtypes=("float32", "bfloat16"),
    weight=0.67,
)
def test_loading_changes_adapters_only(subject: Subject, case: FileCase) -> None:
    source, config = trained(subject, case)
    model, _ = trained(subject, case)
    model.train(case.how != "evaluating")
    for name, parameter in model.named_parameters():
        if case.how == "frozen adapters":
            parameter.requires_grad_(False)
        if case.how == "trainable norms" and "norm" in name:
            parameter.requires_grad_(True)
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            # the source has another base, which must not be saved
            parameter.mul_(-2) if "lora_" in name else parameter.add_(1)
    before = snapshot(model)
    with folder() as path:
        save(subject, source, config, path)
        with kept("load_adapter"):
            load(subject, model, path)
        at_fault = culprit(Path(path), source)
    require_same(before, model, "load_adapter", _may_change)
    with fault_of(at_fault):
        for name, tensor in expected_tensors(source).items():
            require(equal_bits(tensor, expected_tensors(model)[name]), f"{name} is not what was saved")


def _may_change(name: str) -> bool:
    """Whether loading may change this entry of a snapshot; CKP-TRAINABLE judges requires_grad."""
    return name.startswith("requires_grad of ") or (name.startswith("the value of ") and "lora_" in name)


TRAINABLE = (
    "adapted",
    "plain",
    "frozen adapters",
    "trainable norms",
    "trainable base",
    "merged",
    "another dtype",
    "tied",
)


@clause(
    "CKP-TRAINABLE",
    sentence="""After loading exactly the parameters of the adapters require gradients, whatever did before, in a model
    with or without adapters, merged, in another dtype, or with a tied head; no training flag changes. A model without
    adapters may be refused with a ValueError.""",
    why="Training would otherwise leave adapters as they were loaded, or change the base weights.",
    cases=FILES.narrowed(how=TRAINABLE, chosen=("wildcard", "all", "q_proj"), rslora=(False,)),
    dtypes=ONE,
    weight=0.67,
)
def test_exactly_the_adapters_are_trainable(subject: Subject, case: FileCase) -> None:
    source, config = trained(subject, case)
    model = toy(subject, case) if case.how in ("plain", "another dtype", "tied") else trained(subject, case)[0]
    model.train(case.seed % 2 == 0)
    _prepare(model, case.how)
    modes = {name: module.training for name, module in model.named_modules()}
    with folder() as path:
        save(subject, source, config, path)
        error = raised(lambda: subject.target.load_adapter(model, str(path)))
    if isinstance(error, ValueError) and not adapted(model):
        return
    with fault_of("load_adapter"):
        require(error is None, f"load_adapter into a model ({case.how}) raised {error!r}")
        wrong = [name for name, p in model.named_parameters() if p.requires_grad != (name in adapters(model))]
        flags = {True: "requires", False: "does not require"}
        for name in wrong[:1]:
            flag = flags[model.get_parameter(name).requires_grad]
            require(False, f"{name} {flag} gradients after loading into a model ({case.how})")
        for name, mode in modes.items():
            now = model.get_submodule(name).training
            require(now == mode, f"{name or 'the model'}.training is {now} after loading: it was {mode}")
        if case.how == "tied":
            require(_tie(model), "the head is no longer tied to the embeddings")


def _tie(model: Any) -> bool:
    return model.head.weight is model.embed.weight


def _prepare(model: nn.Module, how: str) -> None:
    """Bring a model into the state of a case."""
    for name, parameter in model.named_parameters():
        if how == "frozen adapters":
            parameter.requires_grad_(False)
        if how == "trainable base" or (how == "trainable norms" and "norm" in name):
            parameter.requires_grad_(True)
    if how == "another dtype":
        model.bfloat16()
    if how == "tied":
        tie(model)
    if how == "merged":
        layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
        for layer in layers:
            getattr(layer, "merge", lambda: None)()


@clause(
    "CKP-FILES-KEPT",
    sentence="Loading does not change the files, and the model does not change if the files are later overwritten.",
    why="Tensors that are mapped from the file would change with it.",
    cases=PLAIN,
    dtypes=ONE,
    weight=0.5,
)
def test_loading_keeps_files(subject: Subject, case: FileCase) -> None:
    source, config = trained(subject, case)
    model, _ = trained(subject, case)
    with folder() as path:
        save(subject, source, config, path)
        before = {p.name: p.read_bytes() for p in Path(path).iterdir()}
        load(subject, model, path)
        after = {p.name: p.read_bytes() for p in Path(path).iterdir()}
        require(after == before, f"load_adapter changed the files: {sorted(after)}, and before {sorted(before)}")
        for file in Path(path).iterdir():
            with file.open("r+b") as handle:
                handle.write(b"\xff" * len(before[file.name]))
        y = output(model)
    with fault_of("load_adapter"):
        require(equal_bits(y, output(source)), "the model changed when the files that it was loaded from did")


@clause(
    "CKP-CAST",
    sentence="""A file with another floating-point dtype is cast to the adapter's dtype, each value rounded once, or
    refused with a ValueError that leaves the model unchanged.""",
    cases=PLAIN.narrowed(how=("float64", "float32", "bfloat16", "float16")),
    weight=0.67,
)
def test_another_dtype(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    with folder() as path:
        save(subject, model, config, path)
        values = config_in(Path(path))
        tensors = {
            name: (t.double() * 1.001).to(getattr(torch, case.how)) for name, t in tensors_in(Path(path)).items()
        }
    before = snapshot(model)
    with folder() as path:
        put(Path(path), values, tensors)
        try:
            subject.target.load_adapter(model, path)
        except Exception as error:  # noqa: BLE001  (refusing is allowed)
            require(isinstance(error, ValueError), f"load_adapter of {case.how} raised {error!r}: expected ValueError")
            require_same(before, model, f"load_adapter of {case.how}, which it refused,")
            return
    with fault_of("load_adapter"):
        for name, found in expected_tensors(model).items():
            require(found.dtype == getattr(torch, case.dtype), f"{name} is {found.dtype} after loading {case.how}")
            require(equal_bits(found, tensors[name].to(found.dtype)), f"{name} is not the file's value rounded once")


@clause(
    "CKP-OVERFLOW",
    sentence="""A file with a finite value that is too large for the adapter's dtype is refused by an error that names
    the layer; the value does not become inf.""",
    cases=PLAIN.narrowed(place=(0, 1)),
    dtypes=("float16",),
    weight=0.34,
)
def test_overflow(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    with folder() as path:
        save(subject, model, config, path)
        values = config_in(Path(path))
        tensors = {name: t.float() for name, t in tensors_in(Path(path)).items()}
    last = sorted(adapted(model))[-1]
    tensors[f"{PREFIX}{last}.lora_{'AB'[case.place]}.weight"][0, 0] = 1e30
    with folder() as path:
        put(Path(path), values, tensors)
        fails(subject, model, Path(path), "a value of 1e30 into float16", last)


@clause(
    "CKP-LORA-DTYPE",
    sentence="Adapters whose dtype differs from that of their layers keep their dtype when a file is loaded.",
    cases=PLAIN.narrowed(how=("float64", "float32")),
    dtypes=("bfloat16",),
    weight=0.5,
)
def test_adapter_dtype_kept(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case, lora_dtype=case.how)
    other, _ = trained(subject, case, lora_dtype=case.how)
    with folder() as path:
        save(subject, model, config, path)
        load(subject, other, path)
        with fault_of("save_adapter"):
            require(bool(config_in(Path(path))), f"{CONFIG} is empty")
        at_fault = culprit(Path(path), model)
    with fault_of(at_fault):
        for name, tensor in expected_tensors(other).items():
            require(tensor.dtype == getattr(torch, case.how), f"{name} is {tensor.dtype}: expected torch.{case.how}")
            require(equal_bits(tensor, expected_tensors(model)[name]), f"{name} is not what was saved")
