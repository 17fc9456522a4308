"""Reading a run's event file while the run still writes it."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest

from conformance.judgement.result import Result
from conformance.run import worker_status
from conformance.run.execution import Following
from conformance.run.worker_status import Events


def _result(clause: str) -> dict[str, object]:
    return {**vars(Result(clause, "LinearLoRA", "float32"))}


def test_a_half_written_event_is_read_once_it_is_complete(tmp_path: Path) -> None:
    events = Events(tmp_path)
    following = Following(tmp_path)
    assert not following.look().results  # there is no event file yet
    events.write(result=_result("LAY-FWD"), script="print()")
    whole = events.path.read_text()
    events.write(result=_result("LAY-BIAS"), script=None)
    both = events.path.read_text()
    for cut in range(len(whole), len(both)):
        events.path.write_text(both[:cut])
        assert [clause for clause, *_ in following.look().results] == ["LAY-FWD"]
    events.path.write_text(both)
    outcome = following.look()
    assert [clause for clause, *_ in outcome.results] == ["LAY-FWD", "LAY-BIAS"]
    assert list(outcome.scripts.values()) == ["print()"]


def test_each_event_is_parsed_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events, following = Events(tmp_path), Following(tmp_path)
    loads = Mock(wraps=json.loads)
    monkeypatch.setattr(worker_status, "json", Mock(wraps=json, loads=loads))
    for i in range(20):
        events.write(error="Traceback", where=f"place {i}")
        for _ in range(3):
            assert len(following.look().errors) == i + 1
    assert loads.call_count == 20
