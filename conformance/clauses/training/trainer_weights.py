"""The weights of a `LoraTrainer`'s model: `save_and_clear_private_info` takes the remote ones away."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from conformance.clauses.training.closed_form_network import ONE
from conformance.clauses.training.trainer_run import TRAINED, TRAINER, TrainerCase, TrainerRun
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.expected_errors import calling_quietly, refuses
from conformance.target.subject import Subject

REMOTE = ("inner.base_layer.weight", "outer.base_layer.weight")


@clause(
    "TRN-TRAINER-CLEAR",
    sentence="""After training, LoraTrainer.save_and_clear_private_info(path) writes files under path, leaves no
    weight of a remote layer in the model, and leaves the adapters as they were trained. Training without a server is
    then an error.""",
    cases=TRAINED.narrowed(mode=("simulate",), epochs=(1,)),
    dtypes=ONE,
    subjects=TRAINER,
    needs=("LoraTrainer.compile", "LoraTrainer.save_and_clear_private_info"),
    weight=0.1,
)
def test_weights_cleared(subject: Subject, case: TrainerCase) -> None:
    run = TrainerRun(subject, case).train(case.epochs)
    trained = run.state()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "split")
        with calling_quietly("LoraTrainer.save_and_clear_private_info(path)"):
            run.trainer.save_and_clear_private_info(str(path))
        files = [file for file in path.rglob("*") if file.is_file()]
    require(bool(files), "save_and_clear_private_info(path) wrote no file")
    run.require_state(trained, "after save_and_clear_private_info(path)")
    for name in REMOTE:
        weight = torch.from_numpy(run.problem.weights[name])
        for held, tensor in (*run.net.named_parameters(), *run.net.named_buffers()):
            here = tensor.detach().double().cpu() if not tensor.is_meta else None
            same = here is not None and here.shape in (weight.shape, weight.T.shape)
            gone = not same or not (torch.equal(here, weight) or torch.equal(here, weight.T))  # type: ignore[arg-type]
            require(gone, f"save_and_clear_private_info left the weight {name} in the model, as {held}")
    call = lambda: run.trainer.train(run.batches, case.epochs + 1, fhe="torch")  # noqa: E731
    refuses("train after save_and_clear_private_info", call, types=(RuntimeError, ValueError))
