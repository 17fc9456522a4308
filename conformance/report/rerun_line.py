"""The command that checks one case again, as a failure prints it."""

from __future__ import annotations

import shlex


def rerun_line(target: str, clause: str, subject: str, case: str, device: str = "cpu", lane: str = "cpu") -> str:
    """The command that checks exactly this case again."""
    words = ["loraspec", "rerun", shlex.quote(f"{clause} {target} {subject} {case}".strip())]
    if device != "cpu":
        words.append(f"--device {device}")
    elif lane == "interpreter":
        words.append("--lane interpreter")
    return " ".join(words)
