"""Command-line options of the project's own tests, and fixtures that take long to make: keys and a server."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import costs
from tests.support.first_failures import Place

if TYPE_CHECKING:
    from reference import Keys
    from tests.support.server import Server

# The tensors are small and pytest uses every core already: more threads would mostly wait for each other, spinning.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
if "torch" in sys.modules:
    sys.modules["torch"].set_num_threads(1)
# (twin, clause) pairs that fail, by (file of twins, file of clauses)
JUDGED: dict[tuple[str, str], list[tuple[str, str]]] = {}
PLACES: dict[str, Place | None] = {}  # where twins first fail their own clause


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of test_known_bad.py."""
    parser.addoption(
        "--record-known-bad",
        action="store_true",
        help="record which clauses the known-bad twins fail, where twins, clauses or sets have changed",
    )
    parser.addoption(
        "--whole-known-bad",
        action="store_true",
        help="compare all that is recorded of the known-bad twins, and shrink the case of each",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long tests first, so that no worker starts one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the failures that test_known_bad.py found, from every worker."""
    if report.when == "call":
        told = dict(report.user_properties)
        for twins, clauses, failing in told.get("known_bad", ()):
            JUDGED[twins, clauses] = [(name, clause) for name, clause in failing]
        PLACES.update([told["first_failure"]] if "first_failure" in told else [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the collected failures to the recorded sets if `--record-known-bad` is given."""
    if session.config.getoption("--record-known-bad", default=False) and not hasattr(session.config, "workerinput"):
        from tests.support import diagnosis_table, first_failures, recorded_failures

        held = recorded_failures.updated(JUDGED, recorded_failures.sets_in(), recorded_failures.digests_in())
        for path, entries in zip((recorded_failures.SETS, recorded_failures.DIGESTS), held, strict=True):
            recorded_failures.write(path, entries)
        diagnosis_table.write(held[0])
        first_failures.write(PLACES, set(held[0]))


def pytest_configure(config: pytest.Config) -> None:
    """Record the time of each test in the folder $COSTS, if it is set (see support/costs.py)."""
    costs.begin(config)


@pytest.fixture
def set_aside() -> Iterator[None]:
    """Hide the existing objects from the garbage collector: up to two million, whose visit takes a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def keys() -> Keys:
    from tests.campaigns import noise_law
    from tests.support import encrypted_products

    return noise_law.new_keys(encrypted_products.BACKEND)


@pytest.fixture(scope="session")
def others() -> Keys:
    from tests.campaigns import noise_law
    from tests.support import encrypted_products

    return noise_law.new_keys(encrypted_products.BACKEND)


@pytest.fixture(scope="session")
def exact_keys() -> Keys:
    from reference.encrypted.encryption import ConcreteBackend

    return ConcreteBackend().keygen()


@pytest.fixture(scope="session")
def ciphertext(keys: Keys) -> bytes:
    from tests.support import encrypted_products

    return encrypted_products.BACKEND.encrypt(encrypted_products.INPUTS, keys)


@pytest.fixture(scope="session")
def result(ciphertext: bytes, keys: Keys) -> bytes:
    from tests.support import encrypted_products

    return encrypted_products.BACKEND.evaluate(ciphertext, encrypted_products.WEIGHT, keys.evaluation)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """One server for all tests that leave it running, and the folder whose files control its backend."""
    from tests.support.served_models import STALL, TAMED, save_models
    from tests.support.server import serving

    models, folder = save_models(tmp_path_factory.mktemp("server")), tmp_path_factory.mktemp("tamed")
    limits = f"--ciphertext-bytes 1M --key-bytes 1M --head-seconds {STALL} --stall-seconds {STALL} --worker-bytes 1G"
    with serving(models, *TAMED, *limits.split(), TAMED=str(folder)) as server:
        yield server, folder
        server.stop(signal.SIGINT)
        code, said = server.ended()
        assert code == 0, said
        assert "Traceback" not in said


@pytest.fixture
def server(shared_server: tuple[Server, Path]) -> Iterator[Server]:
    """The shared server; it must still give a right answer after each test."""
    from tests.support.served_models import Client

    running, folder = shared_server
    yield running
    for name in ("hold", "holding", "die", "panic"):
        (folder / name).unlink(missing_ok=True)
    assert running.process.poll() is None, "the server has ended"
    assert Client(running.address).is_right()


@pytest.fixture
def tame(shared_server: tuple[Server, Path]) -> Path:
    """The folder whose files control the shared server's backend."""
    return shared_server[1]
