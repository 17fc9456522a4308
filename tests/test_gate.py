"""The gate's script: it runs the README's command, waits for its background steps, and fails if a step fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LANES = ("chromium", "compile", "fallback", "package")
README = """
<!-- tests -->
```bash
mkdir -p .venv/bin && echo 'PATH="$PWD/tools:$PATH"' > .venv/bin/activate && echo "compile $PIP_COMPILE" && pytest -n 8
```
"""


def gate(folder: Path, readme: str = README, **scripts: str) -> tuple[int, str, list[str]]:
    """Run a copy of `.ci/run` whose tools only print their names, or run `scripts`; return status, output and steps."""
    for place in (".ci", "ci", "tools"):
        (folder / place).mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    shutil.copy(ROOT / "ci" / "timed.py", folder / "ci" / "timed.py")
    (folder / "README.md").write_text(readme)
    files = {f"ci/{name}": name for name in (*LANES, "cost")} | {f"tools/{n}": n for n in ("ruff", "mypy", "pytest")}
    for file, name in files.items():
        (folder / file).write_text(f"#!/usr/bin/env bash\n{scripts.get(name, f'echo said {name} $*')}\n")
        (folder / file).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("COSTS", "KEEP_COSTS")}
    command = ["bash", str(folder / ".ci" / "run")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    steps = folder / "loraspec-report" / "costs" / "steps.jsonl"
    lines = steps.read_text().splitlines() if steps.exists() else []
    return ended.returncode, ended.stdout + ended.stderr, [json.loads(line)["step"] for line in lines]


def test_every_step_runs_with_the_readmes_tests_last_and_shows_the_costs(tmp_path: Path) -> None:
    status, said, steps = gate(tmp_path)
    assert status == 0, said
    assert sorted(steps) == sorted(["install", "lint", "format", "types", "tests", *LANES])
    assert steps[-1] == "tests"
    lines = [line for line in said.splitlines() if not line.startswith("==")]
    assert sorted(lines[:-2]) == sorted([
        "compile 0", "said ruff check .", "said ruff format --check .", "said mypy", *(f"said {n}" for n in LANES)
    ])  # fmt: skip
    assert lines[-2:] == ["said pytest -n 8", f"said cost {tmp_path}/loraspec-report/costs"]


@pytest.mark.parametrize(
    ("step", "code", "ended_before"), [("mypy", 3, "fallback"), ("package", 4, "tests"), ("pytest", 5, "cost")]
)
def test_the_gate_fails_with_the_status_of_the_failing_step(
    tmp_path: Path, step: str, code: int, ended_before: str
) -> None:
    status, said, steps = gate(tmp_path, **{step: f"echo it fails >&2; exit {code}"})
    assert status == code, said
    assert "it fails" in said
    assert ended_before not in steps
    assert "said cost" not in said


def test_the_gate_waits_for_background_steps(tmp_path: Path) -> None:
    status, said, steps = gate(tmp_path, compile="sleep 1; echo late", ruff="echo early; exit 7")
    assert status == 7
    assert said.index("early") < said.index("late")
    assert steps[-1] == "package"


def test_a_readme_without_a_test_command_is_refused(tmp_path: Path) -> None:
    status, said, steps = gate(tmp_path, readme=README.replace("tests -->", "texts -->"))
    assert (status, "README.md has no installation && pytest after" in said) == (1, True)
    assert steps == []
