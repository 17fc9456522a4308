"""Run a step of the gate and record its time in the folder $COSTS: python ci/timed.py NAME COMMAND …

The record has wall-clock seconds, and CPU seconds including child processes. The script needs only Python, so that it
can time the installation too. The exit status is that of the command.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path


def main(name: str, command: list[str]) -> int:
    """Run the command, then add a line to `steps.jsonl`."""
    started = time.perf_counter()
    status = subprocess.run(command, check=False).returncode
    wall = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if folder := os.environ.get("COSTS"):
        line = {"step": name, "cpu": round(used.ru_utime + used.ru_stime, 2), "wall": round(wall, 2), "status": status}
        Path(folder).mkdir(parents=True, exist_ok=True)
        with Path(folder, "steps.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
