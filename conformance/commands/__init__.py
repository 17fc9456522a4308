"""The commands of `loraspec`, one file each: its options (`add`), and what it does with them (`execute`).

Importing them imports neither torch nor hypothesis: what a command needs beyond its options it imports when it runs.
"""

from __future__ import annotations

from conformance.commands import bench, cost, demo, explain, init, matrix, merge, ranks, rerun, run, serve, spec

COMMANDS = {
    "run": run,
    "merge": merge,
    "matrix": matrix,
    "cost": cost,
    "explain": explain,
    "rerun": rerun,
    "bench": bench,
    "ranks": ranks,
    "init": init,
    "spec": spec,
    "serve": serve,
    "demo": demo,
}
