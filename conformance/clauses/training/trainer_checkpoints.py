"""Checkpoints of `LoraTrainer`: an interrupted run goes on with its next epoch, and ends as it would have ended."""

from __future__ import annotations

import tempfile

import torch

from conformance.clauses.training.closed_form_network import ONE
from conformance.clauses.training.trainer_run import TRAINED, TRAINER, TrainerCase, TrainerRun
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.subject import Subject


@clause(
    "TRN-TRAINER-RESUME",
    sentence="""A LoraTrainer with a checkpoint_dir saves each epoch. After load_checkpoint() a new trainer counts on
    from the epoch that was saved, train(batches, num_epochs) runs only the epochs that are left, and parameters,
    optimiser, learning rate and history end as those of the uninterrupted run, bit for bit.""",
    why="A trainer that begins at epoch 1 again trains too long, and with the wrong learning rates.",
    cases=TRAINED.narrowed(epochs=(3,), cut=(1, 2), mode=("torch", "simulate")),
    dtypes=ONE,
    subjects=TRAINER,
    weight=0.34,
)
def test_resume(subject: Subject, case: TrainerCase) -> None:
    whole = TrainerRun(subject, case).train(case.epochs)
    with tempfile.TemporaryDirectory() as folder:
        TrainerRun(subject, case, checkpoint_dir=folder).train(case.cut)
        resumed = TrainerRun(subject, case, checkpoint_dir=folder)
        torch.manual_seed(case.seed + 1)  # a new process has another random state
        found = resumed.load().trainer.epoch
        require(found == case.cut, f"epoch is {found} after load_checkpoint(): expected {case.cut}, as were finished")
        resumed.train(case.epochs)
    left = case.epochs - case.cut
    require(
        resumed.batches.epochs == left,
        f"train(batches, {case.epochs}) ran {resumed.batches.epochs} epochs after a checkpoint of {case.cut}: "
        f"expected {left}",
    )
    epochs, expected = ([line["epoch"] for line in run.trainer.history] for run in (resumed, whole))
    require(epochs == expected, f"history has the epochs {epochs} after resuming: expected {expected}")
    resumed.require_state(whole.state(), "the resumed run beside the uninterrupted one")
    same = resumed.trainer.history == whole.trainer.history
    require(same, "history differs between the resumed run and the uninterrupted one")


@clause(
    "TRN-TRAINER-LATEST",
    sentence="load_checkpoint() without a path loads the checkpoint with the most epochs: the tenth before the ninth.",
    why="The order of strings puts epoch-9 after epoch-10.",
    cases=TRAINED.narrowed(steps=(1,), calls=(1,), epochs=(10, 11)),
    dtypes=ONE,
    subjects=TRAINER,
    weight=0.1,
)
def test_latest(subject: Subject, case: TrainerCase) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected = TrainerRun(subject, case, checkpoint_dir=folder).train(case.epochs).state()
        resumed = TrainerRun(subject, case, checkpoint_dir=folder).load()
    found = resumed.trainer.epoch
    require(found == case.epochs, f"load_checkpoint() loaded epoch {found}: expected the latest, {case.epochs}")
    resumed.require_state(expected, "after load_checkpoint()")
