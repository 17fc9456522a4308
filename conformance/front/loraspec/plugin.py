"""The pytest plugin that is loaded wherever loraspec is installed; it does nothing in unrelated sessions.

It loads the suite's plugin, `conformance.plugin`, where the session collects the suite: `pytest --pyargs conformance
--target my.target`, or pytest inside a checkout. Elsewhere it imports no package of the distribution but its own, since
the repository under test may have packages with the same names.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loraspec import distribution


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the suite's plugin, which adds the options, if the session collects the suite."""
    config = pluginmanager.get_plugin("pytestconfig")
    if config is None or not concerns_us(config):
        return
    try:
        distribution.pin()
    except ImportError as error:
        raise pytest.UsageError(str(error)) from error
    from conformance import plugin

    pluginmanager.register(plugin, "loraspec-suite")


def concerns_us(config: pytest.Config) -> bool:
    """Whether this session collects this suite: an argument names the suite, or the session runs in its checkout."""
    words = [*config.invocation_params.args, *os.environ.get("PYTEST_ADDOPTS", "").split()]
    here, suite = config.invocation_params.dir, distribution.folder()
    return (
        any(word.startswith("--loraspec-") for word in words)
        or ("--pyargs" in words and any(word.split(".")[0].split(":")[0] == suite.name for word in words))
        or any(_inside(here / word.split("::")[0], suite) for word in words if not word.startswith("-"))
        or ((suite.parent / "pyproject.toml").exists() and _inside(here, suite.parent))
    )


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder)
