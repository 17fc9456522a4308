"""`python -m tests.campaigns.paths` judges every path through the optimized layer at benchmarked sizes.

Triton's kernels are interpreted: 8192x4096x4096 takes minutes, the sizes of the CPU benchmark take seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from conformance.bench.agreement import Agreement
from conformance.bench.cases import CPU, Size, shape, sizes
from conformance.bench.layers import Contender, Operands, Problem
from conformance.judgement.outcomes import Violation
from conformance.target.target import Target

DTYPES = ("float32", "bfloat16", "float16")
# The Triton layer of `routed` takes every optional route.
LAYERS = (("optimized", "LinearLoRA"), ("optimized", "TritonLinearLoRA"), ("routed", "TritonLinearLoRA"))


def verdicts(chosen: tuple[Size, ...] = CPU, dtypes: tuple[str, ...] = DTYPES) -> Iterator[tuple[str, str]]:
    """Yield each problem with the worst error ÷ budget of y, dX, dA and dB, or with the violation."""
    for problem in (Problem(size, dtype) for size in chosen for dtype in dtypes):
        operands = Operands(problem)
        agreement = Agreement(problem, operands)
        for spec, subject in LAYERS:
            layer = Contender(Target.load(spec, "cpu"), subject).built(problem, operands)
            try:
                verdict = f"{agreement.check(layer):.3f}"
            except Violation as violation:
                verdict = f"FAIL {violation}"
            yield f"{problem}  {spec} {subject}", verdict


def main() -> int:
    """Print the verdicts; return 1 if one is a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", type=shape, default=[], metavar="MxKxN")
    parser.add_argument("--rank", nargs="+", type=int, default=[], metavar="r")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    chosen = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("set TRITON_INTERPRET=1: without it no kernel runs on a CPU")
    sys.path.insert(0, str(Path(__file__).parents[1] / "targets"))
    torch.set_num_threads(1)
    failed = 0
    for what, verdict in verdicts(sizes(chosen.shapes, chosen.rank, "cpu"), tuple(chosen.dtype)):
        print(f"{what:<70} {verdict}", flush=True)
        failed += verdict.startswith("FAIL")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
