"""transformers' Trainer is judged by its runs alone, and its habits hide no defect."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import reference
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target

# without the rows that clauses share out: the Trainer takes a second for a run
FEW = dataclasses.replace(PROFILES["quick"], volume=2, shrinks=0, shares=False)
OF_RUNS = {"WINDOWS", "SCHEDULE", "HISTORY", "RESUME", "LATEST", "EVAL", "EVAL-RUN"}


def judged(thing: Any, name: str) -> Any:
    """The result of a target's trainer in a clause."""
    clause = load_all()[f"TRN-TRAINER-{name}"]
    (subject,) = Target.of(thing, "mine").subjects(clause)
    return Examination(clause, subject, "float32", FEW).run()


class WholeModels:
    """A trainer that cannot split its model, and has no `compile`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.trainer = reference.LoraTrainer(*args, **options)

    def train(self, train_loader: Any, num_epochs: int) -> None:
        self.trainer.train(train_loader, num_epochs, fhe="torch")

    def __getattr__(self, name: str) -> Any:
        if name in ("compile", "save_and_clear_private_info"):
            raise AttributeError(name)
        return getattr(self.__dict__["trainer"], name)


class StaysInEvaluation(reference.LoraTrainer):
    """A trainer that leaves the whole model in evaluation mode, until its next step."""

    def evaluate(self, fhe: str | None = None) -> dict[str, float]:
        found = super().evaluate(fhe)
        self.lora_training_module.eval()
        return found

    def _train_on(self, window: list[Any], fhe: str) -> None:
        self.lora_training_module.train()
        super()._train_on(window, fhe)


class Declared:
    """A target whose trainer sets modes, which it declares."""

    CONFORMANCE: ClassVar[dict[str, Any]] = {"features": {"training_flags": "set"}}
    LoraTrainer = StaysInEvaluation


def test_a_trainer_alone_is_judged_in_one_mode() -> None:
    target = Target.of(SimpleNamespace(LoraTrainer=WholeModels), "mine")
    clauses = [clause for clause in load_all().values() if clause.group == "training" and target.subjects(clause)]
    assert {clause.id for clause in clauses} == {f"TRN-TRAINER-{name}" for name in OF_RUNS}
    assert target.claimed == ("training",)
    assert target.binding_errors() == []
    for name in ("RESUME", "EVAL-RUN"):  # which are judged in the mode simulate where a trainer has it
        assert judged(target.thing, name).status == "pass"


def test_modes_that_a_trainer_sets_are_a_convention_if_that_is_declared() -> None:
    assert judged(Declared, "EVAL").status == "pass"
    assert judged(Declared, "EVAL-RUN").status == "pass"
    undeclared = judged(SimpleNamespace(LoraTrainer=StaysInEvaluation), "EVAL")
    assert "in another mode" in undeclared.message


def test_modes_that_are_kept_contradict_the_declaration() -> None:
    kept = SimpleNamespace(LoraTrainer=reference.LoraTrainer, CONFORMANCE=Declared.CONFORMANCE)
    assert "in another mode" in judged(kept, "EVAL").message


@pytest.fixture
def transformers_trainer() -> Any:
    """The target of transformers' Trainer."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    return pytest.importorskip("conformance.targets.transformers_trainer")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["WINDOWS", "SCHEDULE", "HISTORY", "RESUME"])
def test_the_trainer_of_transformers_passes(transformers_trainer: Any, name: str) -> None:
    result = judged(transformers_trainer, name)
    assert result.status == "pass", result.message


@pytest.mark.filterwarnings("ignore")
def test_its_own_mean_over_the_items_of_a_window_passes(transformers_trainer: Any) -> None:
    target = Target.of(transformers_trainer.items, "items")
    claimed = {clause.id for clause in load_all().values() if target.subjects(clause)}
    assert claimed == {f"TRN-TRAINER-{name}" for name in ("SCHEDULE", "RESUME", "LATEST", "EVAL", "EVAL-RUN", "ITEMS")}
    assert judged(transformers_trainer.items, "ITEMS").status == "pass"


@pytest.mark.filterwarnings("ignore")
def test_its_evaluation_changes_the_random_state_alone(transformers_trainer: Any) -> None:
    result = judged(transformers_trainer, "EVAL")
    assert result.message.splitlines()[0].endswith("LoraTrainer.evaluate() changed torch's random state")
    with torch.random.fork_rng(devices=[]):
        kept = SimpleNamespace(
            CONFORMANCE=transformers_trainer.CONFORMANCE, LoraTrainer=_protected(transformers_trainer)
        )
        assert judged(kept, "EVAL").status == "pass"


def _protected(target: Any) -> type:
    class Protected(target.LoraTrainer):  # type: ignore[misc]
        """The same with the random state of torch put back after an evaluation."""

        def evaluate(self) -> dict[str, float]:
            with torch.random.fork_rng(devices=[]):
                found: dict[str, float] = super().evaluate()
            return found

    return Protected


@pytest.mark.filterwarnings("ignore")
def test_a_window_that_is_divided_twice_is_seen(transformers_trainer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(transformers_trainer.ItemsTrainer, "scaled", False)  # it also divides by the batches then
    assert "gradient of" in judged(transformers_trainer.items, "ITEMS").message


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_divided_by_the_window_is_seen(transformers_trainer: Any, monkeypatch: Any) -> None:
    kind = type("Undivided", (transformers_trainer.Trainer,), {"loss_is_scaled_for_ga": property(lambda _: True)})
    kind.loss_is_scaled_for_ga = kind.loss_is_scaled_for_ga.setter(lambda *_: None)  # type: ignore[attr-defined]
    monkeypatch.setattr(transformers_trainer, "Trainer", kind)
    assert "gradient of" in judged(transformers_trainer, "WINDOWS").message


@pytest.mark.filterwarnings("ignore")
def test_what_the_target_cannot_continue_is_refused(transformers_trainer: Any, tmp_path: Any) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = transformers_trainer.LoraTrainer(
        model, optimizer, lambda out, labels: (out - labels).sum(), checkpoint_dir=str(tmp_path)
    )
    with pytest.raises(FileNotFoundError, match="holds no checkpoint-STEP"):
        trainer.load_checkpoint()
    batches = [(torch.ones(1, 2), torch.ones(1, 1))]
    trainer.train(batches, 1)
    assert (trainer.epoch, trainer.step, len(trainer.history)) == (1, 1, 1)
    with pytest.raises(NotImplementedError, match=r"expected load_checkpoint\(\) before a second train"):
        trainer.train(batches, 2)
    trainer.load_checkpoint()
    trainer.train(batches, 2)
    assert (trainer.epoch, trainer.step) == (2, 2)
