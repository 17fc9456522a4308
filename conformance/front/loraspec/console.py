"""The command `loraspec`, which runs this distribution's suite in every working folder."""

from __future__ import annotations

from loraspec import distribution


def main() -> int:
    """Run one command and return its exit code."""
    distribution.pin()
    from conformance import cli

    return cli.main()
