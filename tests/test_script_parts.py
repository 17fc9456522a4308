"""Parts of short scripts: definitions of the suite as compact code, objects that it makes, what ranks did."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from conformance.cases.case import Case
from conformance.clauses.training.closed_form_network import Net, StepCase
from conformance.reproducer.compact_code import compact
from conformance.reproducer.condition import violated
from conformance.reproducer.hooked_code import TAPE, hooked, tree_of
from conformance.reproducer.judged_calls import RECORDERS
from conformance.reproducer.literals import Leaf, Unsayable
from conformance.reproducer.rank_records import Answers, RankRecord, joined, rank_of
from conformance.reproducer.reduction import RIGHT, said
from conformance.reproducer.source_sites import site_of
from conformance.reproducer.statement_removal import shortened
from conformance.reproducer.steps import Failure, Step
from conformance.reproducer.tape import Tape
from conformance.target.subject import Subject
from tests.support.twins import CLAUSES

LONG = '''
class Net(nn.Module):
    """A network."""

    width: int = 3

    def __init__(self, case: StepCase, *, dropout: bool = True) -> None:
        """Make it."""
        super().__init__()


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Twice as much."""
    out: torch.Tensor = 2 * x
    return out


def nothing() -> None:
    """Do nothing."""
'''
SHORT = '''class Net(nn.Module):
    """A network."""

    width = 3

    def __init__(self, case, *, dropout=True):
        super().__init__()

def doubled(x):
    out = 2 * x
    return out

def nothing():
    pass
'''


def new_tape() -> Tape:
    """A tape of a check of nothing."""
    return Tape(Subject("lora_linear", torch.nn.functional.linear), RECORDERS)


def test_compact_code_has_neither_annotations_nor_docstrings_of_functions() -> None:
    assert compact(LONG) == SHORT


def test_statements_are_removed_while_the_script_shows_the_defect() -> None:
    text = "def f(x):\n    y = x\n    try:\n        z = x + 1\n    except ValueError:\n        raise\n    return z\n"
    kept: Callable[[str], bool] = lambda each: "z = x + 1" in each and "return z" in each  # noqa: E731
    assert shortened(text, kept) == "def f(x):\n    z = x + 1\n    return z\n"
    assert shortened("def f():\n    return 1\n", lambda each: "def f" in each) == "def f():\n    pass\n"
    assert shortened(text, lambda _: False) == text


def test_a_case_has_the_fields_that_the_class_reads() -> None:
    tape = new_tape()
    code = tape.objects.call(Net, tape.say(Net), (StepCase(m=5, h=3, clip=0.5),), {})
    assert ast.unparse(code).endswith("Net(_import_types:SimpleNamespace(k=1, h=3, n=1, r=1, source='loss_fn'))")
    with pytest.raises(Unsayable, match="a case"):
        tape.say(Case())


def test_a_list_of_a_callback_is_one_variable() -> None:
    tape, seen = new_tape(), list[str]()
    vars(sys.modules[__name__])[TAPE] = tape

    def note(*_given: Any) -> None:
        """Note the call."""
        seen.append(str(torch.float32))

    functions: tuple[Any, Any] = note, lambda *_: seen.append("again")

    try:
        named, code = map(tape.objects.local_function, functions)
    finally:
        del vars(sys.modules[__name__])[TAPE]
    events, defined = tape.steps
    assert ast.unparse(named) == defined.name
    assert ast.unparse(events.node or ast.Pass()) == "[]"
    assert ast.unparse(defined.node or ast.Pass()).splitlines()[1].strip().startswith(f"{events.name}.append(str(")
    assert ast.unparse(code) == f"lambda *_: {events.name}.append('again')"
    assert ast.unparse(tape.say(seen)) == events.name


def test_attributes_in_a_tuple_are_assigned_one_by_one() -> None:
    from conformance.clauses.fhe.split_model import linear

    clause = CLAUSES["FHE-DISABLE"]
    tape = new_tape()
    weight = torch.nn.Parameter(torch.ones(2, 3))
    with hooked(tape, clause.check):
        layer = linear(weight, None)
    assert layer.weight is weight
    assert [ast.unparse(step.node).split(" = ")[0].partition(".")[2] for step in tape.steps[-2:] if step.node] == [
        "weight",
        "bias",
    ]


def test_the_place_of_a_call_is_that_of_its_syntax_tree() -> None:
    def asked() -> Any:
        return site_of(sys._getframe(1))

    place = asked(), asked()
    tree = tree_of(__name__)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "asked"]
    expected = [(__name__, n.lineno, n.end_lineno, n.col_offset, n.end_col_offset) for n in calls]
    assert [*place] == sorted(expected, key=lambda site: site[3])


def test_many_values_may_be_drawn_from_a_seed() -> None:
    small, large = Leaf.of(torch.ones(2, 3)), Leaf.of(torch.zeros(64, 64, dtype=torch.bfloat16))
    assert small.seeded == small.literal
    drawn = eval(large.seeded, {"torch": torch})
    assert (drawn.shape, drawn.dtype, len(large.seeded) < 100) == ((64, 64), torch.bfloat16, True)
    assert torch.equal(drawn, eval(large.seeded, {"torch": torch}))


def recorded(rank: int, value: float, call: str = "f(_v0, {rank})") -> RankRecord:
    """What a rank did: a call with an operand of its own."""
    leaf = Step("_v0", None, leaf=Leaf.of(torch.tensor([value])), effect=False)
    called = Step("_v1", ast.parse(call.format(rank=rank), mode="eval").body)
    return RankRecord([leaf, called], {"y": ast.Name("_v1", ast.Load())})


def test_ranks_look_up_what_differs() -> None:
    leaf, call = joined([recorded(0, 1.0), recorded(1, 2.0)])
    assert ast.unparse(call.node or ast.Pass()) == "f(_v0, (0, 1)[rank])"
    assert leaf.leaf is not None
    assert eval(leaf.leaf.literal, {"torch": torch, "rank": 1}) == torch.tensor([2.0])
    same = joined([recorded(0, 1.0, "f(_v0)"), recorded(1, 1.0, "f(_v0)")])[0].leaf
    assert same is not None
    assert same.literal == "torch.tensor([1], dtype=torch.float32)"


def test_ranks_that_do_something_else_have_no_script() -> None:
    with pytest.raises(Unsayable, match="ranks that make other calls"):
        joined([recorded(0, 1.0, "f(_v0)"), recorded(1, 1.0, "g(_v0)")])
    with pytest.raises(Unsayable, match="ranks that make other calls"):
        joined([recorded(0, 1.0), RankRecord([])])


def test_a_result_of_a_rank_is_its_code_there() -> None:
    named = ast.parse("_answer_1_y", mode="eval").body
    assert rank_of(named) == 1
    assert ast.unparse(Answers(recorded(1, 1.0)).visit(named)) == "_v1"
    assert rank_of(ast.parse("_answer_0_y == _answer_1_y")) is None
    with pytest.raises(Unsayable, match="the result x"):
        Answers(recorded(1, 1.0)).visit(ast.parse("_answer_1_x", mode="eval").body)


def test_a_requirement_without_a_call_has_no_condition() -> None:
    with pytest.raises(Unsayable, match="a requirement without a source"):
        violated(new_tape(), Failure("required", module=__name__, place=(1, 0), names={}))


def test_processes_of_a_script_write_nothing() -> None:
    assert said("import sys; print('x', file=sys.stderr)", "LIN-FWD").kind == RIGHT
