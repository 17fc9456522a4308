"""Calls that a model refuses in the middle of its life: it stays as it was, and lives on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.clauses.life.life_case import NAMES, LifeCase, LifeSpace
from conformance.clauses.life.model import (
    MODEL_OPERATIONS,
    MODEL_SIZES,
    MODEL_START,
    SUBJECT,
    lacking_in,
)
from conformance.clauses.life.model_chain import SETS
from conformance.clauses.life.model_files import FILES
from conformance.clauses.life.model_judgement import judge_outputs, judge_state
from conformance.clauses.life.model_life import ModelLife
from conformance.clauses.life.model_situation import ModelOperation, ModelSituation
from conformance.clauses.life.situation import Operation
from conformance.specification.clause import clause
from conformance.target.expected_errors import quiet
from conformance.target.subject import Subject

TRIED = """refused = None
try:
    {call}
except Exception as error:
    refused = error"""


class RefusedCall(ModelOperation):
    """A call that must raise an Exception."""

    def call(self, life: Any) -> str:
        """The call, as code."""
        raise NotImplementedError

    def act(self, life: Any) -> None:
        call = self.call(life)
        life.run(TRIED.format(call=call))
        life.require("refused is not None", f"`{call}` raised nothing")


class ApplyAgain(RefusedCall):
    """Adapters for layers of which some have one."""

    def __init__(self, name: str, layers: tuple[str, ...]) -> None:
        self.name, self.layers = name, layers

    def fits(self, now: ModelSituation) -> bool:
        chosen = {name for name, layers in SETS.items() if set(layers) & set(self.layers)}
        return bool(chosen & set(now.adapted))

    def call(self, life: Any) -> str:  # noqa: ARG002
        return f"target.apply_lora_to_linear_modules(model, config({self.layers}, None))"


class ApplyToIntegers(RefusedCall):
    """Adapters for all layers that have none, of which the last has a weight of integers; then its weight again."""

    name = "apply-integers"

    def fits(self, now: ModelSituation) -> bool:
        return not now.adapted

    def works(self, life: Any) -> bool:
        """Whether the target refuses such layers; it may have adapters for them."""
        model = eval(life.built(torch.float32, {}), life.names)
        model.head.weight = nn.Parameter(model.head.weight.to(torch.uint8), requires_grad=False)
        try:
            with quiet():
                exec(self.call(life), {**life.names, "model": model})
        except Exception:  # noqa: BLE001  (which error it is does not matter here)
            return True
        return False

    def act(self, life: Any) -> None:
        integers = "nn.Parameter(torch.ones_like(whole, dtype=torch.uint8), requires_grad=False)"
        life.run(f"whole = model.head.weight\nmodel.head.weight = {integers}")
        super().act(life)
        life.run("base(model.head).weight = whole")

    def call(self, life: Any) -> str:  # noqa: ARG002
        return 'target.apply_lora_to_linear_modules(model, config(("up", "down", "head"), None))'


class ApplyToNothing(ModelOperation):
    """A config that matches no layer: it is refused, or freezes all but the adapters, as each config does."""

    name = "apply-nothing"

    def act(self, life: Any) -> None:
        life.run(TRIED.format(call='target.apply_lora_to_linear_modules(model, config(("nothing_like_it",), None))'))
        if life.names["refused"] is None:
            life.truth.train_adapters_only()


class LoadOther(RefusedCall):
    """A file with the adapters of other layers than those of the model."""

    name, needs = "load-other", FILES

    def fits(self, now: ModelSituation) -> bool:
        return bool(now.adapted) and now.saved is not None and now.saved != now.adapted

    def call(self, life: Any) -> str:  # noqa: ARG002
        return "target.load_adapter(model, folder)"


class LoadDamaged(RefusedCall):
    """A file that was cut off."""

    name, needs = "load-damaged", FILES

    def fits(self, now: ModelSituation) -> bool:
        return now.saved is not None

    def act(self, life: Any) -> None:
        life.run("damaged = new_folder()\nshutil.copytree(folder, damaged, dirs_exist_ok=True)")
        largest = max(Path(life.names["damaged"]).rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
        name = largest.relative_to(life.names["damaged"])
        cut = f'path = Path(damaged) / "{name}"\npath.write_bytes(path.read_bytes()[:-4])'
        life.run(cut)
        super().act(life)

    def call(self, life: Any) -> str:  # noqa: ARG002
        return "target.load_adapter(model, damaged)"


class SaveWrong(RefusedCall):
    """Adapters saved with the config of another rank, over the file that there is."""

    name, needs = "save-wrong", FILES

    def fits(self, now: ModelSituation) -> bool:
        return bool(now.adapted) and now.saved is not None

    def call(self, life: Any) -> str:
        layers = list(life.truth.adapted)
        return f"target.save_adapter(model, config({layers}, None, dim={life.case.r + 1}), folder)"


class MergeTied(RefusedCall):
    """Merging a model whose adapted head is tied to the embedding."""

    name, needs = "merge-tied", "merge_adapters unmerge_adapters"

    def fits(self, now: ModelSituation) -> bool:
        return now.tied and "outer" in now.adapted

    def call(self, life: Any) -> str:  # noqa: ARG002
        return "target.merge_adapters(model)"


REFUSALS: tuple[ModelOperation, ...] = (
    ApplyAgain("apply-again", ("up", "down")),
    ApplyAgain("apply-mixed", ("up", "head")),
    ApplyToIntegers(),
    ApplyToNothing(),
    LoadOther(),
    LoadDamaged(),
    SaveWrong(),
    MergeTied(),
)
REFUSED = [operation.name for operation in REFUSALS]
BETWEEN = ("apply-inner", "apply-outer", "step", "thaw", "freeze", "tie", "untie", "merge", "unmerge", "to-bfloat16")
OTHERS = (*BETWEEN, "deepcopy", "save", "load")
OPERATIONS: dict[str, Operation] = {
    **{operation.name: operation for operation in REFUSALS},
    **{name: MODEL_OPERATIONS[name] for name in OTHERS},
}
NAMES += REFUSED
LIVES = LifeSpace(OPERATIONS, MODEL_START, lacking_in(OPERATIONS), **MODEL_SIZES)


def judge_refused(life: ModelLife) -> None:
    """Judge the state and the outputs after a refused call; other clauses judge them after other operations."""
    if life.past and life.past[-1] in REFUSED:
        judge_state(life)
        judge_outputs(life)


@clause(
    "LIFE-MODEL-REFUSED",
    sentence="""A call that cannot be done on a model raises an error and leaves the model as it was, whatever it has
    lived through: adapters for layers that have one, or with a weight of integers; a file that is cut off, or has
    adapters of other layers; a config of another rank to save with; merging a tied head.""",
    why="A caller that catches the error otherwise goes on with a model that is half changed.",
    cases=LIVES,
    subjects=SUBJECT,
    level="SHOULD",  # as MOD-FAILED-INTACT
    weight=1.2,
)
def test_refused_calls_on_a_model(subject: Subject, case: LifeCase) -> float | None:
    return ModelLife(subject, case, MODEL_START).live(OPERATIONS, judge_refused)
