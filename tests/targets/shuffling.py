"""A pytest plugin that runs tests in another order: `pytest -p shuffling`."""

import random

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    random.Random(1).shuffle(items)
