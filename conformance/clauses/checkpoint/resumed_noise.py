"""Runs in mode simulate that are saved, interrupted and resumed: their noise continues too."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from conformance.clauses.checkpoint.resumed_runs import load, save
from conformance.clauses.checkpoint.target_calls import folder
from conformance.clauses.checkpoint.training_run import CALLS, NEEDS, RUNS, Run, RunCase, require_state
from conformance.judgement.outcomes import Inconclusive
from conformance.specification.clause import clause
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject


class SplitRun(Run):
    """A run whose frozen products are simulated, with noise from a seed drawn after `seed` seeded torch."""

    def __init__(self, subject: Subject, case: RunCase, seed: int) -> None:
        super().__init__(subject, case)
        target = subject.target
        torch.manual_seed(seed)
        weight = self.net.norm.weight
        batch = torch.linspace(-1, 1, 20).reshape(5, 4).to(weight), torch.zeros(5, 3).to(weight)
        with calling_quietly("HybridFHEModel(training, get_remote_names(training), backend='fast'), compiled"):
            names = target.get_remote_names(self.training)
            self.hybrid = target.HybridFHEModel(self.training, names, backend="fast")
            self.hybrid.compile_model(batch, n_bits=8)
            self.hybrid.set_fhe_mode("simulate")
        self.training.update_training_parameters(
            self.optimizer,
            self.scheduler,
            F.mse_loss,
            {"gradient_accumulation_steps": case.steps, "max_grad_norm": case.clip or None},
        )


@clause(
    "CKP-RESUME-NOISE",
    sentence="""A run in mode simulate that is saved after any micro-batch, and loaded into new objects with another
    noise seed, ends with the same state as the uninterrupted run, bit for bit: the noise continues where it was.""",
    cases=RUNS.narrowed(optimizer=("adamw", "momentum"), scheduler=("none", "cosine")),
    dtypes=("float32",),
    needs=(*NEEDS, "HybridFHEModel(backend)", "get_remote_names"),
    weight=0.34,
)
def test_resumed_noise(subject: Subject, case: RunCase) -> None:
    with folder() as path:
        whole = SplitRun(subject, case, case.seed).go(case.cut)
        save(subject, whole, path, case.cut)
        expected = whole.go(CALLS).state()
        resumed = SplitRun(subject, case, case.seed + 1)
        load(subject, resumed, path)
        resumed.done = case.cut
    require_state(resumed.go(CALLS), expected, "load_training, resumed in mode simulate")
    noiseless = SplitRun(subject, case, case.seed)
    noiseless.hybrid.set_fhe_mode("disable")
    state = noiseless.go(CALLS).state()
    if all(torch.equal(state[name], value) for name, value in expected.items()):
        raise Inconclusive("the noise changes nothing in this run")
