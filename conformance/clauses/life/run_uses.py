"""Operations that use a training run: calls that train, calls that fail, evaluation."""

from __future__ import annotations

from typing import Any

from conformance.clauses.life.run_situation import RunOperation


class Call(RunOperation):
    """A call on the next micro-batch, with the optimiser on or off."""

    trains = True

    def __init__(self, name: str, *, steps: bool) -> None:
        self.name, self.steps = name, steps

    def act(self, life: Any) -> None:
        life.toggle("run_optimizer", self.steps)
        life.call()


class Fail(RunOperation):
    """A call that raises: x or the labels have too many columns, or a hook raises."""

    def __init__(self, name: str, *, prepare: str = "", tidy: str = "", wider: tuple[int, int] = (0, 0)) -> None:
        self.name, self.prepare, self.tidy, self.wider = name, prepare, tidy, wider

    def act(self, life: Any) -> None:
        life.fail(self.prepare, self.tidy, wider=self.wider)


class FailInTheOptimiser(RunOperation):
    """A call whose optimiser raises after its step; while calibrating it has no step."""

    name = "fail-optimiser"

    def act(self, life: Any) -> None:
        if life.truth.calibrate:
            return
        before = life.truth.run_optimizer
        life.toggle("run_optimizer", True)
        life.fail("handle = optimizer.register_step_post_hook(broken)", "handle.remove()")
        life.toggle("run_optimizer", before)


class Evaluate(RunOperation):
    """The output of the network in evaluation mode, without a graph."""

    name = "evaluate"

    def act(self, life: Any) -> None:
        life.evaluate()


class ZeroGradients(RunOperation):
    """Cleared gradients: the accumulation begins again."""

    name = "zero-grad"

    def act(self, life: Any) -> None:
        life.run("net.zero_grad()")
        life.truth.gradients = {}


class Eval(RunOperation):
    """Evaluation mode of the whole run, in which calls train all the same; the next operation happens in it."""

    name = "eval"

    def act(self, life: Any) -> None:
        life.train(False)


class Calibrate(RunOperation):
    """Calibration turned on; the next operation happens while it lasts."""

    name = "calibrate"

    def act(self, life: Any) -> None:
        life.toggle("calibrate", True)


HOOKED = "handle = net.inner.register_forward_hook(break_gradient)"
FAILURES = (
    Fail("fail-shape", wider=(1, 0)),
    Fail("fail-loss", wider=(0, 1)),
    # outer's adapter has its gradient by then
    Fail("fail-backward", prepare=HOOKED, tidy="handle.remove()"),
    FailInTheOptimiser(),
)
USES = (
    Call("step", steps=True),
    Call("accumulate", steps=False),
    *FAILURES,
    Evaluate(),
    ZeroGradients(),
    Eval(),
    Calibrate(),
)
