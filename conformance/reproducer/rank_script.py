"""The script of a check on several ranks: a function with the calls of each rank, run in processes."""

from __future__ import annotations

import copy
import dataclasses
import re
import textwrap
from typing import Any

from conformance.reproducer.literals import Unsayable
from conformance.reproducer.rank_records import ANSWER, Answers, joined, rank_of
from conformance.reproducer.steps import Failure
from conformance.reproducer.straight_script import Script
from conformance.reproducer.tape import Tape

FIRST = re.compile(r"on rank (\d+) of \d+: ")  # the rank that failed first, in a message
RANKS = """

def run(rank):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=$world)
    torch.manual_seed(rank)
    try:
        work(rank)
    except SystemExit as error:
        seen.put(error.code)


context = torch.multiprocessing.get_context("fork")
seen, folder = context.SimpleQueue(), tempfile.mkdtemp()
processes = [context.Process(target=run, args=(rank,)) for rank in range($world)]
for process in processes:
    process.start()
processes[$rank].join($seconds)
codes = [processes[$rank].exitcode]
found = None if seen.empty() else seen.get()
for process in processes:
    process.join(0 if found or any(codes) else $seconds)
    codes.append(process.exitcode)
    process.kill()
if found:
    raise SystemExit(found)
assert not any(codes), f"the ranks ended with {codes}"
$right"""


class RankScript(Script):
    """A script to be written of what ranks did; its steps are those of the failing rank."""

    rank = 0

    def wrapped(self, body: list[str]) -> list[str]:
        """The lines of the body as a function of the rank, and the lines that run it on all ranks."""
        *work, right = body
        begin = next(n for n, line in enumerate(work) if line.startswith(("got = ", "if ", "try:")))
        calls, compared = work[:begin], work[begin:]
        inner = [*calls, f"if rank == {self.rank}:", *(textwrap.indent(line, "    ") for line in compared)]
        if self.failure.step is not None:  # all ranks make the call that fails on this one
            inner = [*calls, *compared]
        ranks = RANKS.replace("$world", str(len(self.tape.ranks))).replace("$rank", str(self.rank))
        ranks = ranks.replace("$seconds", "60").replace("$right", right)
        return ["", "def work(rank):", *(textwrap.indent(line, "    ") for line in inner), *ranks.splitlines()]


def rank_script(tape: Tape, failure: Failure | None, *, message: str, **given: Any) -> RankScript:
    """The script of a failure on a rank.

    Args:
        failure: that of the process which started the ranks, if it compared their results.
    Raises:
        Unsayable: if the failure is not that of one rank, or the ranks did not make the same calls.
    """
    named = failure is not None and (failure.actual or failure.condition)
    rank = rank_of(named) if named else None
    if rank is None:
        found = FIRST.match(message)
        rank = int(found[1]) if found else -1
        failure = tape.ranks[rank].failure if found and rank < len(tape.ranks) else None
    else:
        assert failure is not None
        answers, changed = Answers(tape.ranks[rank]), copy.deepcopy((failure.actual, failure.condition))
        actual, condition = (answers.visit(node) if node is not None else None for node in changed)
        failure = dataclasses.replace(failure, actual=actual, condition=condition)
    if failure is None:
        raise Unsayable(f"{ANSWER} of several ranks")
    steps = joined([record for record in tape.ranks if record.steps])
    if failure.step is not None:
        name = failure.step.name
        failure = dataclasses.replace(failure, step=next(step for step in steps if step.name == name))
    tape.steps = steps
    script = RankScript(tape, failure, message=message, **given)
    script.rank = rank
    return script
