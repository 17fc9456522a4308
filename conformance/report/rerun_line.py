"""The command that reruns one case, as failure messages print it."""

from __future__ import annotations

import shlex


def rerun_line(target: str, clause: str, subject: str, case: str, device: str = "cpu", lane: str = "cpu") -> str:
    """The command that reruns exactly this case."""
    words = ["loraspec", "rerun", shlex.quote(f"{clause} {target} {subject} {case}".strip())]
    if device != "cpu":
        words.append(f"--device {device}")
    elif lane == "interpreter":
        words.append("--lane interpreter")
    return " ".join(words)
