"""Kept rank processes run case after case like new ones; a case that fails on them is repeated on new ones."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import distributed

import optimized
import reference
from conformance.clauses.distributed import kept_ranks
from conformance.clauses.distributed.kept_ranks import KEEPER, packed
from conformance.clauses.distributed.rank_process import PATIENCE, Answer, Work
from conformance.clauses.distributed.ranks import on_ranks
from conformance.judgement.outcomes import Violation
from conformance.run.supervisor import born
from conformance.specification.clause import load_all
from conformance.target.subject import Subject
from conformance.target.target import Target
from tests.test_distributed import eventually

LEFT: list[int] = []  # numbers of the tasks that ran in this rank process


@pytest.fixture
def subject() -> Iterator[Subject]:
    KEEPER.end()
    yield Target.of(reference).subjects(load_all()["DIS-DDP"])[0]
    KEEPER.end()


def telling(subject: Subject, number: int) -> Work:
    """Work that returns its process id, an all-reduced sum, the layer's class and a random number."""

    def work(rank: int) -> Answer:
        total = torch.tensor([float(rank + number)])
        distributed.all_reduce(total)
        layer = subject.thing(torch.nn.Linear(3, 2), dim=1)
        return {"pid": os.getpid(), "total": float(total), "layer": type(layer).__name__, "drawn": float(torch.rand(1))}

    return work


def pids(answers: list[Answer]) -> list[int]:
    return [answer["pid"] for answer in answers]


def runs(pid: int) -> bool:
    """Whether a process exists; KEEPER reaps the ranks that it ends, so no zombies are left."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_next_case_runs_on_the_same_ranks_and_draws_the_same_numbers(subject: Subject) -> None:
    first, second = (on_ranks(2, telling(subject, number)) for number in (1, 5))
    assert pids(first) == pids(second)
    assert [answer["total"] for answer in (*first, *second)] == [3.0, 3.0, 11.0, 11.0]
    assert [answer["drawn"] for answer in first] == [answer["drawn"] for answer in second]
    assert first[0]["drawn"] != first[1]["drawn"]
    assert {answer["layer"] for answer in (*first, *second)} == {"LinearLoRA"}


def test_ranks_are_kept_per_world_size_and_for_one_target(subject: Subject) -> None:
    one, two = on_ranks(1, telling(subject, 0)), on_ranks(2, telling(subject, 0))
    assert pids(on_ranks(1, telling(subject, 1))) == pids(one)
    assert pids(on_ranks(2, telling(subject, 1))) == pids(two)
    other = Target.of(optimized).subjects(load_all()["DIS-DDP"])[0]
    assert not set(pids(on_ranks(1, telling(other, 0)))) & {*pids(one), *pids(two)}
    assert not any(map(runs, (*pids(one), *pids(two))))


def test_work_without_a_subject_runs_on_ranks_that_are_not_kept() -> None:
    answers = on_ranks(2, lambda rank: {"pid": os.getpid(), "rank": rank})
    assert not any(map(runs, pids(answers)))


def leaving(subject: Subject, number: int) -> Work:
    """Work that fails in a process that has run such work before."""

    def work(rank: int) -> Answer:
        if rank == 1 and LEFT:
            raise Violation(f"{subject.name} finds {LEFT}")
        LEFT.append(number)
        return {"pid": os.getpid()}

    return work


def test_state_left_by_a_case_does_not_fail_the_next_case(subject: Subject) -> None:
    first = on_ranks(2, leaving(subject, 1))
    second = on_ranks(2, leaving(subject, 2))
    assert not set(pids(first)) & set(pids(second))
    assert not any(map(runs, pids(first)))


def ending(subject: Subject, how: str) -> Work:
    """Work whose rank 1 dies, fails or hangs, on kept and on new ranks alike."""

    def work(rank: int) -> Answer:
        if rank == 1 and how == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if rank == 1 and how == "fails":
            raise Violation(f"{subject.name} fails")
        while rank == 1 and how == "hangs":
            signal.pause()
        distributed.all_reduce(torch.ones(1))
        return {}

    return work


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("dies", "rank 1 of 2 ended by signal SIGSEGV before it was done"),
        ("fails", "on rank 1 of 2: LinearLoRA fails"),
        ("hangs", "all 2 ranks have not ended within 2 s\n         rank 0 is in "),
    ],
)
def test_a_failure_on_kept_ranks_is_reported_as_on_new_ranks(
    subject: Subject, how: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE, "2" if how == "hangs" else "60")
    first = on_ranks(2, telling(subject, 0))
    with pytest.raises(Violation) as caught:
        on_ranks(2, ending(subject, how))
    assert str(caught.value).startswith(says)
    assert not any(map(runs, pids(first)))
    assert on_ranks(2, telling(subject, 1))[0]["total"] == 3.0


def test_kept_ranks_that_have_died_are_replaced(subject: Subject) -> None:
    first = on_ranks(2, telling(subject, 0))
    os.kill(pids(first)[0], signal.SIGKILL)
    assert eventually(lambda: not KEEPER.kept[2].alive())
    assert not set(pids(on_ranks(2, telling(subject, 0)))) & set(pids(first))


def test_ranks_are_replaced_after_a_fixed_number_of_tasks(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_ranks, "MOST", 2)
    seen = [pids(on_ranks(1, telling(subject, number)))[0] for number in range(4)]
    assert [seen.index(pid) for pid in seen] == [0, 0, 2, 2]


def test_idle_ranks_end(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.clauses.distributed.rank_process.IDLE", 0.1)
    (pid,) = pids(on_ranks(1, telling(subject, 0)))
    assert eventually(lambda: not KEEPER.kept[1].alive())
    assert not KEEPER.kept[1].folder.exists()
    assert pids(on_ranks(1, telling(subject, 0))) != [pid]


def test_kept_ranks_and_their_folders_go_when_their_parent_ends(subject: Subject) -> None:
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        found = [pid for world in (1, 2) for pid in pids(on_ranks(world, telling(subject, 0)))]
        folders = [str(ranks.folder) for ranks in KEEPER.kept.values()]
        os.write(send, json.dumps([found, folders]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    found, folders = json.loads(os.read(receive, 2**16))
    assert len(found) == 3
    assert len(folders) == 2
    assert eventually(lambda: not any(map(os.path.exists, folders)))
    assert eventually(lambda: not any(map(born, found)))


def closing_over(thing: object, subject: Subject) -> Callable[[int], Answer]:
    return lambda rank: {"thing": str(thing), "subject": subject.name, "rank": rank}


def test_only_work_that_can_be_pickled_is_given_to_kept_ranks(subject: Subject) -> None:
    target, written = packed(closing_over(1, subject))
    assert target is reference
    assert written is not None
    assert packed(closing_over(1, Subject("LinearLoRA", object, reference))) == (None, None)  # not the target's layer
    with open(__file__) as file:
        assert packed(closing_over(file, subject)) == (None, None)
