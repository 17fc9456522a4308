"""The project's own tests, asked about what no clause kills: how `reference` and `optimized` do what no clause sees."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns.mutation.mutants import ROOT
from tests.support.preloaded_process import PROJECT, import_paths

REST = ("conformance", "tests", "ci", ".github", "pyproject.toml", "README.md")  # of the project, beside the packages
# of pytest, in a process that has imported the suite before
ASKED = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "--timeout=600")
ASKED += ("-W", "ignore::pytest.PytestAssertRewriteWarning")
# the first pattern that a file's path matches decides; of the tests, those that take seconds, not minutes
TESTS = (
    ("reference/service/weight_version.py", "splitting saving split_repairs"),
    ("reference/service/kept_tensors.py", "client_files split_repairs"),
    ("reference/service/peft_layers.py", "split_peft"),
    ("reference/service/deployment.py", "saving split_repairs client_files server"),
    ("reference/service/shared_state.py", "splitting saving shared_input split_repairs server"),
    ("reference/service/remote_module.py", "splitting saving split_answers split_repairs server"),
    ("reference/service/linear_product.py", "splitting saving split_peft"),
    ("reference/service/*", "split_repairs server server_access server_interruptions remote server_attacks keys"),
    ("reference/encrypted/*", "answer_check seal_backend seal_noise hostile_ciphertexts keys noise encryption"),
    ("reference/files/expert_*", "expert_files expert_keys"),
    ("reference/files/*", "checkpoint checkpoint_fields checkpoint_files checkpoint_runs sharded_files"),
    ("reference/checkpoint.py", "checkpoint checkpoint_fields checkpoint_files checkpoint_runs sharded_files"),
    ("optimized/kernels/packed*", "small_tiles packed_kernels"),
    ("*packed*", "packed_weight packed_files packed_kernels packed_node packed_memory"),
    ("*expert*", "experts expert_files expert_keys experts_transformers"),
    ("*dora*", "dora_norm dora_dropout"),
    ("*dropout*", "counted_dropout dora_dropout"),
    ("reference/train*", "trainer failed_steps checkpoint_runs"),
    ("reference/*state.py", "failed_steps checkpoint_runs"),
    ("reference/rollback.py", "failed_steps failed_adaptation"),
    ("*quantization.py", "quantized_linear splitting saving shared_input integers_kernel"),
    ("*int*8*", "integers_kernel"),
    ("*integers*", "integers_kernel"),
    ("reference/*hybrid.py", "splitting saving split_repairs split_peft"),
    ("reference/split_model.py", "client_files splitting saving split_repairs split_peft split_answers"),
    ("reference/torch_internals.py", "torch_internals"),
    ("*distributed.py", "distributed sharded_files conv1d"),
    ("*sharded.py", "distributed sharded_files"),
    ("*model.py", "merged_model failed_adaptation life_of_models"),
    ("optimized/dispatch/*", "routes sweep dense_adapters row_tiles padded_rows"),
    ("reference/*batch*", "batched"),
    ("reference/segments.py", "batched"),
    ("optimized/*batch*", "batched padded_rows dense_adapters"),
    ("optimized/padded_rows.py", "padded_rows"),
    ("optimized/dense_adapters.py", "dense_adapters"),
    ("optimized/*tile*", "row_tiles tuning"),
    ("optimized/kernels/*", "small_tiles split_sums row_tiles integers_kernel tuning"),
    ("optimized/nodes/qkv.py", "fused memory"),
    ("optimized/nodes/mlp.py", "fused memory"),
    ("optimized/nodes/blocks.py", "fused second_derivatives"),
    ("optimized/projections.py", "fused fused_curves"),
    ("optimized/nodes/*", "footprint plain memory second_derivatives"),
    ("optimized/gradnorm.py", "limits"),
    ("optimized/products.py", "small_tiles second_derivatives counted_dropout"),
    ("optimized/*", "limits far_rows plain memory padded_rows"),
    ("*", "limits far_rows conv1d failed_adaptation merging_for_good packed_weight checkpoint_files"),
)

EVERYWHERE = ("refusals", "refused_files", "refused_operands")


def tests_of(file: str) -> tuple[str, ...]:
    """The paths of the tests for a file such as ``reference/encrypted/keys.py``."""
    names = next(names for pattern, names in TESTS if fnmatch(file, pattern)).split()
    return tuple(f"tests/test_{name}.py" for name in (*names, *EVERYWHERE))


def is_test(name: str) -> bool:
    """Whether what killed a mutant is a test, not a clause."""
    return name.startswith("tests/")


def first_failure(folder: Path, tests: tuple[str, ...]) -> dict[str, str] | None:
    """Run tests in this process, in a copy of the project around the packages in `folder`; tell the first that fails.

    Everything is imported anew from the copy, and by the commands that a test runs in another process too.
    """
    for name in REST:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    for name in [name for name in sys.modules if name.partition(".")[0] in PROJECT]:
        del sys.modules[name]
    paths = [str(path) for path in import_paths(folder)]
    sys.path[:] = [*paths, *(path for path in sys.path if Path(path or ".").resolve() not in import_paths(ROOT))]
    importlib.invalidate_caches()
    os.chdir(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    seen = _First()
    try:
        ended = pytest.main([*ASKED, f"--rootdir={folder}", *tests], plugins=[seen])
        if ended not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            seen.told = seen.told or ("tests/conftest.py", f"pytest ended with {ended!r}")
    except BaseException as error:  # noqa: BLE001  (a mutant may raise anything)
        seen.told = seen.told or ("import", f"{type(error).__name__}: {error}")
    if seen.told is None:
        return None
    return {"status": "killed", "clause": seen.told[0], "message": seen.told[1][-300:]}


class _First:
    """A pytest plugin that keeps the first failure: the test, and what it said."""

    told: tuple[str, str] | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.told is None:
            self.told = report.nodeid, str(report.longrepr)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and self.told is None:
            self.told = report.nodeid, str(report.longrepr)
