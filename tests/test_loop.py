"""`loraspec run T --watch-clause ID`: each save is judged, and the last verdict is the exit code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance import cli
from conformance.errors import UsageError
from conformance.run import watch_mode
from tests.support.commands import PATIENCE, TARGETS
from tests.support.watch_loop import Loop

RIGHT = (TARGETS / "right.py").read_text()
HELPED = """
from helper import FACTOR
from right import lora_linear as plain


def lora_linear(x, weight, bias, lora_A, lora_B, scale, **options):
    return plain(x, weight, bias, lora_A, lora_B, scale * FACTOR, **options)
"""


@pytest.fixture
def loops() -> Iterator[list[Loop]]:
    started: list[Loop] = []
    yield started
    for one in started:
        one.stop()


def test_each_save_is_judged_and_the_last_verdict_is_the_exit_code(tmp_path: Path, loops: list[Loop]) -> None:
    (tmp_path / "mine.py").write_text(RIGHT.replace("* scale", "* 1"))
    watching = Loop(tmp_path, "mine", "LIN-FWD", "--dtype", "float32")
    loops.append(watching)
    first = watching.verdict()
    assert first[0] == "judging LIN-FWD at each save of mine; Ctrl-C ends\n"
    assert "FAIL LIN-FWD  lora_linear float32 fail" in first[-1]
    assert any(line.startswith("rerun    loraspec rerun 'LIN-FWD mine lora_linear ") for line in first)

    fixed = watching.save(RIGHT)
    assert len(fixed) == 1
    assert re.search(r"PASS LIN-FWD  lora_linear float32 0\.\d\d; \d+ cases; \d+\.\d s$", fixed[0])

    half = watching.save(RIGHT.partition(" * scale")[0])
    assert half[0].startswith("target 'mine' raised on import: SyntaxError: '(' was never closed (mine.py, line 11)")
    assert "NO VERDICT mine cannot be judged" in half[-1]

    (tmp_path / "mine.py").unlink()
    assert watching.verdict()[0] == "target 'mine' does not import: no module named 'mine'\n"
    assert "PASS LIN-FWD" in watching.save(RIGHT)[-1]

    stuck = "    while True:\n        print('stuck', flush=True)\n        __import__('time').sleep(1)\n"
    (tmp_path / "mine.py").write_text(RIGHT.replace("    pre, post", f"{stuck}    pre, post"))
    assert watching.lines.get(timeout=PATIENCE) == "stuck\n"  # it hangs; the next save replaces it
    assert "PASS LIN-FWD" in watching.save(RIGHT)[-1]

    died = watching.save(RIGHT.replace("    pre, post", "    import os\n    os.abort()\n    pre, post"))
    assert any(line.startswith("seen     killed the process: Aborted") for line in died)
    assert "CRASHED LIN-FWD  lora_linear float32 crashed" in died[-1]

    assert watching.interrupt() == 1
    ended = watching.lines.get(timeout=PATIENCE) + watching.lines.get(timeout=PATIENCE)
    assert "ended; the last verdict: CRASHED LIN-FWD" in ended
    assert list(tmp_path.glob("loraspec-report")) == []


def test_a_file_that_the_target_imports_is_followed_too(tmp_path: Path, loops: list[Loop]) -> None:
    (tmp_path / "mine.py").write_text(HELPED)
    (tmp_path / "helper.py").write_text("FACTOR = = 1.0\n")
    watching = Loop(tmp_path, "mine", "LIN-FWD", "--dtype", "float32", "--timeout", "60")
    loops.append(watching)
    assert "SyntaxError: invalid syntax (helper.py, line 1)" in watching.verdict()[-2]
    # These saves have the same size and second: Python's bytecode cache must not run the earlier file.
    for factor, word in (("1.0", "PASS"), ("2.0", "FAIL"), ("1.0", "PASS")):
        assert f"{word} LIN-FWD" in watching.save(f"FACTOR = {factor}\n", "helper.py")[-1]
    assert watching.interrupt() == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["right", "--watch-clause", "LIN-FWT"], "unknown clause 'LIN-FWT': did you mean LIN-FWD"),
        (["nosuch", "--watch-clause", "LIN-FWD"], "target 'nosuch' does not import: no module named 'nosuch'"),
        (["right", "--watch-clause", "LIN-FWD", "--json"], "--json does not go with --watch-clause"),
        (["right", "--watch-clause", "LIN-FWD", "-n", "2"], "-n does not go with --watch-clause"),
        (["right", "--watch-clause", "LIN-FWD", "--group", "linear"], "--group does not go with --watch-clause"),
    ],
)
def test_a_loop_that_cannot_start_is_a_usage_error(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TARGETS)
    assert cli.main(["run", *options]) == 2
    assert says in capsys.readouterr().err


def test_the_watched_files_are_those_that_could_define_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("raise ValueError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path.resolve() / "package"
    assert watch_mode.places_of("package.inner.target") == {
        package / "__init__.py",
        package / "inner" / "__init__.py",
        package / "inner" / "target" / "__init__.py",
        package / "inner" / "target.py",
    }
    with pytest.raises(UsageError, match="no module named 'nosuchpackage'"):
        watch_mode.places_of("nosuchpackage.target")
