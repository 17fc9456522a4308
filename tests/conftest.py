"""Options of the suite's own tests, and keys, which take long to make."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from reference import Keys

# for tensors of a few elements two threads of torch cost ten times what one does, in a process of a test's own too
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--record-known-bad` rewrites known_bad/recorded.json from what each twin fails now (run with -n 0)."""
    parser.addoption("--record-known-bad", action="store_true", help="record the clauses each known-bad twin fails")


@pytest.fixture(scope="session")
def keys() -> Keys:
    from tests import encrypted, noise_law

    return noise_law.new_keys(encrypted.BACKEND)


@pytest.fixture(scope="session")
def others() -> Keys:
    from tests import encrypted, noise_law

    return noise_law.new_keys(encrypted.BACKEND)


@pytest.fixture(scope="session")
def exact_keys() -> Keys:
    from reference.encryption import ConcreteBackend

    return ConcreteBackend().keygen()


@pytest.fixture(scope="session")
def ciphertext(keys: Keys) -> bytes:
    from tests import encrypted

    return encrypted.BACKEND.encrypt(encrypted.INPUTS, keys)


@pytest.fixture(scope="session")
def result(ciphertext: bytes, keys: Keys) -> bytes:
    from tests import encrypted

    return encrypted.BACKEND.evaluate(ciphertext, encrypted.WEIGHT, keys.evaluation)
