"""Group `remote`: `HybridFHEModel` in mode remote, and the `serve` that answers it from a process of its own."""

from __future__ import annotations

from conformance import remote

globals().update(remote.tests())
