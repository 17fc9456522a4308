"""The life of a layer that torch.compile has traced: what it captured must not outlive what it was captured from."""

from __future__ import annotations

import warnings
from typing import Any

from conformance.clauses.life.layer import OPERATIONS, SIZES, START, lacking
from conformance.clauses.life.layer_judgement import judge_one_call
from conformance.clauses.life.layer_life import Life
from conformance.clauses.life.life_case import NAMES, LifeCase, LifeSpace
from conformance.clauses.life.situation import Operation
from conformance.isolation.torch_internals import compilation_limits
from conformance.specification.clause import clause
from conformance.target.subject import Subject


class Compile(Operation):
    """Compilation without code generation: guards and captured constants are those of every backend."""

    name, keeps_graph = "compile", True

    def act(self, life: Any) -> None:
        life.run('torch.compiler.reset()\nlayer.compile(backend="eager")')


# torch's compiler warns of the .grad that it looks at itself where a hook or a parametrisation gives it other tensors
LEFT_OUT = ("hook", "parametrise", "deparametrise")
COMPILED = {"compile": Compile(), **{name: one for name, one in OPERATIONS.items() if name not in LEFT_OUT}}
MOST = 1000  # compilations of one function
NAMES.append("compile")


@clause(
    "LIFE-LAYER-COMPILE",
    sentence="""After any sequence of operations, y and the gradients of a layer that torch.compile has traced are
    those of the formula with the present values.""",
    cases=LifeSpace(COMPILED, START, lacking, ("compile",), strength=1, length=10, **{**SIZES, "dropout": (0.0,)}),
    dtypes=("float32",),
    weight=0.2,  # five lives meet every operation, of which quick has one
)
def test_life_of_a_compiled_layer(subject: Subject, case: LifeCase) -> float | None:
    with compilation_limits(MOST), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's warnings do not concern results
        return Life(subject, case, START).live(COMPILED, judge_one_call)
