"""An input that several modules take, as q, k and v of an attention block do, is encrypted once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from conformance.clauses.fhe.mode_simulate import BACKEND
from conformance.clauses.fhe.quantized_case import SMALL, Problem, QuantizedCase
from conformance.clauses.fhe.recording_backend import Parameters, Recorder
from conformance.clauses.fhe.split_model import linear, run, split
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "the same x": lambda x: x,
    "another x": torch.neg,
    "x changed in place": lambda x: x.neg_(),
}
NAMES = ["q", "k", "v"]


class Heads(nn.Module):
    """Three layers over one x, which `change` may change before the last of them."""

    def __init__(self, problem: Problem, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        weight = problem.weight
        others = (weight.flip(0), torch.cat([weight, weight[:1]]))  # the last has one output more
        self.q, self.k, self.v = (linear(nn.Parameter(w.clone(), False), None) for w in (weight, *others))
        self.change = change

    def forward(self, x: torch.Tensor) -> Any:
        q, k = self.q(x), self.k(x)
        return torch.cat([q, k, self.v(self.change(x))], -1)


@clause(
    "FHE-SHARED-INPUTS",
    sentence="""In mode execute an input that several modules of a model take, as q, k and v do, is encrypted once,
    whatever their numbers of outputs. An input with other values, also one that was changed in place between two
    modules, is encrypted for itself.""",
    why="Encryption and upload of an input cost more than a product, and attention would pay three times.",
    cases=SMALL.narrowed(how=tuple(CHANGES), lead=("2d", "3d")),
    dtypes=("float32",),
    needs=BACKEND,
    feature="shared_inputs",
    weight=0.5,
)
def test_modules_share_an_encrypted_input(subject: Subject, case: QuantizedCase) -> float | None:
    problem, backend = Problem(case, subject.device), Recorder(Parameters())
    hybrid = split(subject, Heads(problem, CHANGES[case.how]), NAMES, backend=backend)
    x = problem["x"].detach()
    with calling(f"compile_model(x, n_bits={case.n_bits})"):
        hybrid.compile_model(x.clone(), n_bits=case.n_bits)
    expected = run(hybrid, "disable", x.clone())
    found = run(hybrid, "execute", x.clone())
    require(torch.equal(found, expected), f"the results over {case.how} differ from those of mode disable")
    rows, times = sum(len(q) for q in backend.encrypted), 1 if case.how == "the same x" else 2
    right = times * (x.numel() // case.k)
    require(rows == right, f"{rows} rows were encrypted for three modules over {case.how}: expected {right}")
    return None
