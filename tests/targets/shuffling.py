"""A pytest plugin that runs tests in another order: `pytest -p shuffling`."""

import random


def pytest_collection_finish(session):
    random.Random(1).shuffle(session.items)
