"""The commands of `loraspec`, one module each: `add` adds the command and its options, `execute` runs the command.

Importing the commands imports neither torch nor hypothesis. A command imports further modules when it runs.
"""

from __future__ import annotations

from conformance.commands import (
    adapters,
    bench,
    cost,
    demo,
    explain,
    init,
    matrix,
    merge,
    ranks,
    rerun,
    run,
    serve,
    spec,
)

COMMANDS = {
    "run": run,
    "merge": merge,
    "matrix": matrix,
    "cost": cost,
    "explain": explain,
    "rerun": rerun,
    "adapters": adapters,
    "bench": bench,
    "ranks": ranks,
    "init": init,
    "spec": spec,
    "serve": serve,
    "demo": demo,
}
