"""Group `fhe`: `HybridFHEMode` and `HybridFHEModel` in the modes that need no server, and the quantisers."""

from __future__ import annotations

from conformance import fhe

globals().update(fhe.tests())
