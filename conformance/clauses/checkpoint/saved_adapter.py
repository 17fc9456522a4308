"""The files of `save_adapter`: the tensors with their names and bits, and equal bytes each time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.clauses.checkpoint.peft_files import CONFIG, TENSORS, config_in, tensors_in
from conformance.clauses.checkpoint.target_calls import (
    FILES,
    ONE,
    PLAIN,
    FileCase,
    culprit,
    equal_bits,
    expected_tensors,
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
from conformance.clauses.model.small_models import adapted
from conformance.isolation.process_state import kept
from conformance.judgement.outcomes import require
from conformance.specification.clause import SHOULD, clause
from conformance.target.adapter_tensors import scale_of
from conformance.target.calls import calling, fault_of
from conformance.target.subject import Subject


@clause(
    "CKP-LAYOUT",
    sentence="""save_adapter writes adapter_model.safetensors with base_model.model.<name>.lora_A.weight [r, K] and
    .lora_B.weight [N, r] for each adapted layer, with DoRA also .lora_magnitude_vector [N], and no other tensor, even
    of a tied head. Each has the parameter's own dtype and bits, neither scaled nor transposed.""",
    cases=FILES.narrowed(how=("", "tied head")),
    weight=0.5,
)
def test_layout(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    if case.how:
        tie(model)
    with folder() as path:
        save(subject, model, config, path)
        found, expected = tensors_in(Path(path)), expected_tensors(model)
    with fault_of("save_adapter"):
        missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        require(not missing, f"{TENSORS} lacks {', '.join(missing)}: it has {', '.join(sorted(found))}")
        require(not extra, f"{TENSORS} has {', '.join(extra)}: expected {', '.join(sorted(expected))}")
        for name, tensor in expected.items():
            got, wanted = (found[name].dtype, list(found[name].shape)), (tensor.dtype, list(tensor.shape))
            require(got == wanted, f"{name} is {got[0]} {got[1]}: expected {wanted[0]} {wanted[1]}")
            require(equal_bits(found[name], tensor), f"{name} has other values than the layer's parameter")


@clause(
    "CKP-ROUND-TRIP",
    sentence="""A saved adapter loaded into an adapted model with the same base gives the saved parameters and the
    same output, bit for bit. If that model is a copy of the saved one, the original does not change.""",
    cases=FILES.narrowed(how=("adapted", "adapted differently initialised", "a copy")),
    weight=0.67,
)
def test_round_trip(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    other = copy.deepcopy(model) if case.how == "a copy" else trained(subject, case)[0]
    with folder() as path:
        save(subject, model, config, path)
        with torch.no_grad():
            for name, parameter in (
                *other.named_parameters(),
                *(model.named_parameters() if case.how == "a copy" else ()),
            ):
                if "lora_" in name:
                    parameter.mul_(0 if case.how == "adapted" else -2)
        before = snapshot(model)
        load(subject, other, path)
        if case.how == "a copy":
            require_same(before, model, "load_adapter into a copy of the model")
            load(subject, model, path)
        at_fault = culprit(Path(path), model)
    with fault_of(at_fault):
        for name, tensor in expected_tensors(model).items():
            require(equal_bits(tensor, expected_tensors(other)[name]), f"{name} is not what was saved")
        require(equal_bits(output(model), output(other)), "the output is not that of the model which was saved")


@clause(
    "CKP-FRESH",
    sentence="""A model without adapters refuses a saved adapter with a ValueError and stays without adapters, or gets
    the adapters and the saved model's output bit for bit.""",
    cases=FILES,
    weight=0.5,
)
def test_fresh(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    plain = toy(subject, case)
    with folder() as path:
        save(subject, model, config, path)
        if isinstance(raised(lambda: subject.target.load_adapter(plain, str(path))), ValueError):
            require(not adapted(plain), "load_adapter refused a model without adapters, and left adapters in it")
            return
        load(subject, toy(subject, case), path)
    require(adapted(plain) == adapted(model), f"load_adapter adapted {adapted(plain)}: expected {adapted(model)}")
    with fault_of("load_adapter"):
        require(equal_bits(output(model), output(plain)), "the output is not that of the model which was saved")


@clause(
    "CKP-BYTES",
    sentence="""Saving the same adapter again gives the same bytes. If its modules are registered in another order,
    only adapter_config.json may differ, and only in the order of its keys and of target_modules. A list
    target_modules is sorted or in the order of registration, never in the order of a set.""",
    why="Files that change without a reason defeat caches, digests and version control.",
    cases=FILES.narrowed(chosen=("all", "wildcard", "exclude")),
    dtypes=ONE,
    weight=0.5,
)
def test_bytes(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    kept_bytes: dict[str, bytes] = {}
    for turn in range(6):
        if turn == 3:
            _reverse(model)
        with folder() as path:
            save(subject, model, config, path)
            values = config_in(Path(path))
            for file in sorted(Path(path).iterdir()):
                data = file.read_bytes()
                how = "with its modules registered in reverse" if turn >= 3 else f"{turn + 1} times"
                turned = turn >= 3 and file.name == CONFIG
                with fault_of("save_adapter"):
                    require(
                        kept_bytes.setdefault(f"{file.name} in reverse" if turned else file.name, data) == data,
                        f"saved {how}, {file.name} has other bytes than at first",
                    )
        if turn == 0:
            at_first = _unordered(values)
        with fault_of("save_adapter"):
            require(
                _unordered(values) == at_first,
                f"saved with its modules registered in reverse, {CONFIG} says {_unordered(values)}: "
                f"at first {at_first}",
            )
            targets = values.get("target_modules")
            orders = [sorted(targets), *_orders(model, targets)] if isinstance(targets, list) else [targets]
            require(
                targets in orders, f"target_modules is {targets}: expected it sorted, or as the modules are registered"
            )


def _unordered(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config without the order of its targets; a regular expression may list them in any order."""
    targets = values.get("target_modules")
    return values | {"target_modules": sorted(targets) if isinstance(targets, list) else type(targets)}


def _reverse(model: nn.Module) -> None:
    for module in model.modules():
        module._modules = dict(reversed(module._modules.items()))


def _orders(model: nn.Module, targets: list[str]) -> list[list[str]]:
    """The targets in the order in which their modules are registered, and in reverse."""
    names = [name for name, _ in model.named_modules()]

    def place(target: str) -> int:
        return next((i for i, name in enumerate(names) if f".{name}".endswith(f".{target}")), -1)

    return [sorted(targets, key=place), sorted(targets, key=place, reverse=True)]


@clause(
    "CKP-SAVE-EFFECTS",
    sentence="""save_adapter changes no value, flag or gradient of the model, nor the config, a random state or a
    global setting.""",
    cases=FILES.narrowed(how=("training", "evaluating")),
    dtypes=ONE,
)
def test_saving_changes_nothing(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    model.train(case.how == "training")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before, was = snapshot(model), copy.deepcopy(config)
    with folder() as path, kept("save_adapter"):
        save(subject, model, config, path)
    require_same(before, model, "save_adapter")
    require(config == was, f"save_adapter changed the config: it is {config}, and was {was}")


@clause(
    "CKP-FOLDER",
    sentence="""save_adapter creates the folder and its parents if they do not exist, and does not touch other files
    in the folder.""",
    cases=PLAIN.narrowed(how=("new", "another file in it")),
    dtypes=ONE,
    weight=0.34,
)
def test_folder(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    with folder() as path:
        inner = Path(path, "a", "b") if case.how == "new" else Path(path)
        if case.how != "new":
            (inner / "README.md").write_text("mine", encoding="utf-8")
        save(subject, model, config, inner)
        tensors_in(inner)
        if case.how != "new":
            readme = inner / "README.md"
            mine = readme.is_file() and readme.read_text(encoding="utf-8") == "mine"
            require(mine, "save_adapter changed or removed README.md, which it did not write")


@clause(
    "CKP-MISMATCH",
    sentence="""A config that does not fit the adapters is refused with a ValueError and no file is written, or the
    saved files still give the model's output and its layers' scale.""",
    cases=FILES.narrowed(how=("alpha", "use_rslora", "dim"), r=(2, 6, 9)),
    dtypes=ONE,
)
def test_config_of_another(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    changes = {"alpha": case.alpha * 2, "use_rslora": not case.rslora, "dim": case.r + 1}
    wrong = subject.target.PeftConfig if hasattr(subject.target, "PeftConfig") else type(config)
    with calling("PeftConfig.from_dict"):
        wrong = wrong.from_dict(config.to_dict() | {case.how: changes[case.how]})
    with folder() as path:
        if isinstance(raised(lambda: subject.target.save_adapter(model, wrong, str(path))), ValueError):
            require(not list(Path(path).iterdir()), "save_adapter refused the config, and wrote files all the same")
            return
        other, _ = trained(subject, case)
        load(subject, other, path)
        values = config_in(Path(path))
    with fault_of("save_adapter"):
        same = equal_bits(output(model), output(other))
        require(same, f"saved with another {case.how}, the adapter gives another output")
        scale = values.get("lora_alpha", 0) / (values.get("r", 1) ** (0.5 if values.get("use_rslora") else 1))
        layer: Any = next(m for m in model.modules() if hasattr(m, "lora_A"))
        own = scale_of(layer)
        if own is None:
            return
        require(abs(scale - own) < 1e-6 * own, f"{CONFIG} says a scale of {scale:.6g}: the layers have {own:.6g}")


@clause(
    "CKP-NOTHING",
    sentence="Saving a model without adapters raises a ValueError and writes no file.",
    cases=PLAIN,
    dtypes=ONE,
    level=SHOULD,
    weight=0.17,
)
def test_nothing_to_save(subject: Subject, case: FileCase) -> None:
    _, config = trained(subject, case)
    plain = toy(subject, case)
    with folder() as path:
        error = raised(lambda: subject.target.save_adapter(plain, config, str(path)))
        what = "save_adapter of a model without adapters"
        require(isinstance(error, ValueError), f"{what} raised {error!r}: expected ValueError")
        left = sorted(p.name for p in Path(path).iterdir())
        require(not left, f"{what} wrote {', '.join(left)}")


@clause(
    "CKP-MERGED",
    sentence="""Saving a merged model saves its adapter. Loading an adapter into a merged model gives the output of
    the unmerged model with the loaded adapter.""",
    cases=PLAIN.narrowed(how=("save", "load")),
    dtypes=("float64",),
    needs=("LinearLoRA", "LinearLoRA.merge"),
    weight=0.5,
)
def test_merged(subject: Subject, case: FileCase) -> None:
    model, config = trained(subject, case)
    other, _ = trained(subject, case)
    with torch.no_grad():
        for tensor in (p for name, p in other.named_parameters() if "lora_" in name):
            tensor.mul_(-2)
    expected = output(model)
    with calling("merge()"):
        layers: list[Any] = list((model if case.how == "save" else other).modules())
        for layer in layers:
            if hasattr(layer, "lora_A"):
                layer.merge()
    with folder() as path:
        save(subject, model, config, path)
        load(subject, other, path)
    error = (output(other) - expected).abs().max().item() / expected.abs().max().item()
    with fault_of(f"{case.how}_adapter"):
        require(error < 1e-10, f"after merging before {case.how} the output is off by {error:.3g} of its largest value")
