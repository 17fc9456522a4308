"""The life of one training run: its network, optimiser and scheduler, the target's LoraTraining, and the truth."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.clauses.life import run_network
from conformance.clauses.life.lived import ATTEMPTS, Lived, uninterpreted
from conformance.clauses.life.run_network import SETUP
from conformance.clauses.life.run_situation import RunCase, RunOperation, RunSituation
from conformance.clauses.life.run_truth import (
    ADAPTERS,
    DECAY,
    N_BITS,
    SGD_MOMENTUM,
    STEP_SIZE,
    GroupTruth,
    OptimiserTruth,
    RunTruth,
    SchedulerTruth,
)
from conformance.isolation.memory_folder import in_memory
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.formats import Array, dtype_named, numbers
from conformance.target.expected_errors import quiet
from conformance.target.signature import accepts
from conformance.target.subject import Subject

ROWS = 3
LARGEST = 1e4  # of values that are compared
RELATIVE = 1e-9  # the allowed error, relative to a tensor's largest element: float64, after dozens of small steps
KINDS = {
    "sgd": "torch.optim.SGD({groups}, lr={lr}{flag})",
    "momentum": f"torch.optim.SGD({{groups}}, lr={{lr}}, momentum={SGD_MOMENTUM}{{flag}})",
    "adam": f"torch.optim.Adam({{groups}}, lr={{lr}}, weight_decay={DECAY}{{flag}})",
    "adamw": f"torch.optim.AdamW({{groups}}, lr={{lr}}, weight_decay={DECAY}{{flag}})",
}
SCHEDULERS = {
    "none": "None",
    "exponential": "torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma={gamma})",
    "steps": f"torch.optim.lr_scheduler.StepLR(optimizer, step_size={STEP_SIZE}, gamma={{gamma}})",
}
RATES = {"sgd": 2**-8, "momentum": 2**-10, "adam": 2**-7, "adamw": 2**-6}
GAMMAS = {"exponential": 0.75, "steps": 0.5}
SECOND = 0.5  # the learning rate of the second group ÷ that of the first
REMOTE = ["inference_model.first"] + [
    f"inference_model.{name}.base_layer.{product}"
    for name in ("inner", "outer")
    for product in ("forward_module", "backward_module")
]


class RunLife(Lived):
    """One training run and the truth about it.

    Attributes:
        truth: the exact state of the run, float64.   kept: the truth when the run was saved.
        returned: the loss and grad_norm that the last operation must have returned, if it made a call.
        output: the output that it must have computed, if it evaluated.
        optimizer, flag, groups, scheduler: of the present optimiser and scheduler, as in the case.
    """

    case: RunCase
    truth: RunTruth
    kept: RunTruth

    def __init__(self, subject: Subject, case: RunCase, start: RunSituation) -> None:
        super().__init__(subject, case, start)
        self.optimizer, self.flag, self.groups, self.scheduler = case.optimizer, case.flag, case.groups, case.scheduler
        self.returned: tuple[float, float | None] | None = None
        self.output: Array | None = None
        self.dtype = dtype_named(case.dtype)
        self.folder = tempfile.TemporaryDirectory(prefix="loraspec-", dir=in_memory(), ignore_cleanup_errors=True)
        modules = {"copy": copy, "nn": nn, "tempfile": tempfile, **vars(run_network)}
        self.begin(SETUP, **{name: value for name, value in modules.items() if not name.startswith("__")})
        self.names["folder"] = self.folder.name
        self.calls.lines.append(("folder = tempfile.mkdtemp()\nhybrid = None", {}, False))  # of a script
        self._begin()

    def _begin(self) -> None:
        case = self.case
        self.run(f"plain = Net({case.k}, {case.n}, {case.r}, dropout={case.dropout}).to({self.dtype})")
        random = np.random.default_rng([case.seed, case.k, case.n, case.r])
        values: dict[str, Any] = {}
        for name, tensor in self.names["plain"].state_dict().items():
            key = name.removesuffix(".weight") if "lora_" in name else name
            if "norm" in name:
                values[key] = numbers(tensor).copy()
                continue
            drawn = (random.standard_normal(tuple(tensor.shape)) / np.sqrt(tensor.shape[-1])).round(3)
            values[key] = numbers(torch.from_numpy(drawn).to(self.dtype)).copy()
            copied = f'with torch.no_grad():\n    plain.get_parameter("{name}").copy_(value)'
            self.run(copied, value=torch.from_numpy(values[key]).to(self.dtype))
        clip = case.clip or None
        self.initial = dict(values)
        self.truth = RunTruth(values, self._optimiser_truth(), self._scheduler_truth(), case.steps, clip)
        self.build()

    def has(self, name: str) -> bool:
        """Whether the target has a public name, `f` or `f(argument)`."""
        name, _, argument = name.rstrip(")").partition("(")
        found = getattr(self.subject.target, name, None)
        return found is not None and (not argument or accepts(found, argument))

    def run(self, code: str, **given: Any) -> None:
        """Run lines of Python on the target; warnings, those of torch's schedulers too, are ignored.

        Kernels are not interpreted, which takes seconds for a life: group `fhe` judges those of integers.
        """
        with quiet(), uninterpreted():
            super().run(code, **given)

    def build(self) -> None:
        """New objects for the present settings: the network with the values of its start, and a new optimiser."""
        self.run("net = copy.deepcopy(plain)\ntraining, hybrid = target.LoraTraining(net), None")
        self.new_optimiser()
        self.new_scheduler()
        self.configure()
        if self.truth.mode:
            self.split(self.truth.copy(values=dict(self.initial)))

    def new_optimiser(self) -> None:
        """A new optimiser of the present kind, and its truth."""
        # torch 2.13 cannot step with fused momentum where a parameter that is trained again has none yet
        plain = self.flag == "plain" or (self.optimizer, self.flag) == ("momentum", "fused")
        flag = "" if plain else f", {self.flag}=True"
        lr, apart = RATES[self.optimizer], "{}"
        if self.groups == 2:
            decay = ', "weight_decay": 0.0' if self.optimizer.startswith("adam") else ""
            apart = f'{{}}, {{"lr": {lr * SECOND}{decay}}}'
        self.run(f"optimizer = {KINDS[self.optimizer].format(groups=f'groups(net, {apart})', lr=lr, flag=flag)}")
        self.truth.optimiser = self._optimiser_truth()

    def _optimiser_truth(self) -> OptimiserTruth:
        lr, decay = RATES[self.optimizer], DECAY if self.optimizer.startswith("adam") else 0.0
        if self.groups == 1:
            return OptimiserTruth(self.optimizer, [GroupTruth(ADAPTERS, lr, decay)])
        down, up = ADAPTERS[::2], ADAPTERS[1::2]
        return OptimiserTruth(self.optimizer, [GroupTruth(down, lr, decay), GroupTruth(up, lr * SECOND)])

    def new_scheduler(self) -> None:
        """A new scheduler of the present kind over the optimiser, and its truth."""
        self.run(f"scheduler = {SCHEDULERS[self.scheduler].format(gamma=GAMMAS.get(self.scheduler))}")
        self.truth.scheduler = self._scheduler_truth()

    def _scheduler_truth(self) -> SchedulerTruth | None:
        return None if self.scheduler == "none" else SchedulerTruth(self.scheduler, GAMMAS[self.scheduler])

    def configure(self) -> None:
        """Give LoraTraining its optimiser, scheduler, loss and settings."""
        truth = self.truth
        settings = {"gradient_accumulation_steps": truth.steps, "max_grad_norm": truth.max_norm}
        self.run(f"training.update_training_parameters(optimizer, scheduler, {truth.loss}, {settings})")

    def split(self, present: RunTruth | None = None) -> None:
        """Let the frozen products run on integers, in the present mode; `present` is the truth about the network."""
        noisy = ', backend="fast"' if self.case.dropout and self.has("HybridFHEModel(backend)") else ""
        self.run(f"hybrid = target.HybridFHEModel(training, {REMOTE}{noisy})")
        self.compile(present)

    def compile(self, present: RunTruth | None = None) -> None:
        """Compile the split model for the present values, and set the present mode."""
        x, labels = self._batch(-1, 0)
        option = ", use_dynamic_quantization=False" if self.case.static else ""
        code = f"training.eval()\nhybrid.compile_model((x, labels), n_bits={N_BITS}{option})\ntraining.train({{}})"
        if self.case.static:
            self.truth.ranges = (present or self.truth).ranges_for(x, labels)
        self.run(code.format(self.truth.training), x=self.tensor(x), labels=self.tensor(labels))
        self.run(f'hybrid.set_fhe_mode("{self.truth.mode}")')

    def tensor(self, values: Array) -> torch.Tensor:
        """Values as a tensor of the run's dtype."""
        return torch.from_numpy(values.copy()).to(self.dtype)

    def _batch(self, number: int, attempt: int, rows: int = ROWS) -> tuple[Array, Array]:
        case = self.case
        random = np.random.default_rng([case.seed, number + 1, attempt])
        return random.standard_normal((rows, case.k)).round(3), random.standard_normal((rows, case.n)).round(3)

    def happen(self, operation: RunOperation) -> None:
        """Let one operation happen; where it was not a call, a call that ends the window follows.

        Calibration and evaluation mode end after the operation that follows them, so that most of a life trains.
        """
        lived, calibrated, trained = len(self.past), self.truth.calibrate, self.truth.training
        self.act(operation)
        if len(self.past) > lived and not operation.trains:
            self.toggle("run_optimizer", True)
            self.call()
        if calibrated:
            self.toggle("calibrate", False)
        if not trained:
            self.train(True)

    def call(self) -> None:
        """Train on the next micro-batch, with the first draw for which a wrong result would fail."""
        before = self.truth
        for attempt in range(ATTEMPTS):
            x, labels = self._batch(before.calls, attempt)
            self.truth = before.copy()
            try:
                self.returned = self.truth.call(x, labels)
                break
            except Inconclusive:
                if attempt == ATTEMPTS - 1:
                    raise
        self.run("loss, norm = training((x, labels))", x=self.tensor(x), labels=self.tensor(labels))

    def fail(self, prepare: str = "", tidy: str = "", *, wider: tuple[int, int] = (0, 0)) -> None:
        """Make a call that must raise; x and labels may be wider than the network's."""
        x, labels = self._batch(self.truth.calls, 0)
        x, labels = (np.pad(v, ((0, 0), (0, more))) for v, more in zip((x, labels), wider, strict=True))
        code = "\n".join(part for part in (prepare, "raised = failed(training, (x, labels))", tidy) if part)
        self.run(code, x=self.tensor(x), labels=self.tensor(labels))
        self.require("raised", "a call raised nothing although a part of it did")

    def evaluate(self) -> None:
        """Compute the output for a batch, in evaluation mode and without a graph."""
        x, _ = self._batch(self.truth.calls, 0)
        try:
            self.output = self.truth.output(x)
        except Inconclusive:
            self.output = None  # the call may still change the run
        code = "net.eval()\nwith torch.no_grad():\n    out = net(x)\nnet.train({})"
        self.run(code.format(self.truth.training), x=self.tensor(x))

    def train(self, wanted: bool) -> None:
        """Set training mode or evaluation mode."""
        self.run(f"training.train({wanted})")
        self.truth.training = wanted

    def toggle(self, name: str, wanted: bool) -> None:
        """Turn the optimiser or calibration on or off, where it is not so yet."""
        if getattr(self.truth, name) is not wanted:
            self.run(f"training.toggle_{name}({wanted})")
            setattr(self.truth, name, wanted)

    def all_near(self, checks: list[tuple[str, Any, str]]) -> None:
        """Compare the values of expressions with the truth, at once where all are right."""
        code = f"[{', '.join(text for text, _, _ in checks)}]"
        try:
            found = [numbers(tensor) for tensor in self.value(code)]
            right = all(map(_is_near, found, [value for _, value, _ in checks]))
        except Exception:  # noqa: BLE001  (what is wrong shows below)
            right = False
        for check in [] if right else checks:
            self.near(*check)

    def near(self, text: str, value: Any, name: str, relative: float = RELATIVE) -> None:
        """Compare the value of an expression with the truth."""
        array = np.asarray(value, dtype=np.float64)
        largest = float(np.abs(array).max(initial=1e-30))
        if not largest < LARGEST:
            raise Inconclusive(f"{name} diverges")
        # within a thousandth of the largest element there is no zero and no negated value: it needs no certificate
        allowed = np.full_like(array, relative * largest)
        self.compare(text, Expected(name, array, allowed, torch.float64, certified=False))

    def end(self) -> None:
        """Remove the folder of saved runs."""
        self.folder.cleanup()


def _is_near(found: Array, value: Any) -> bool:
    """Whether an array is well within the budget of its value."""
    array = np.asarray(value, dtype=np.float64)
    largest = float(np.abs(array).max(initial=1e-30))
    near = found.shape == array.shape and np.abs(found - array).max(initial=0.0) <= RELATIVE * largest
    return bool(near) and largest < LARGEST
