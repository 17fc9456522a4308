"""Group `hybrid`: `CustomLinear`, its two modules, `ForwardBackwardModule`, `get_remote_names`, `LINEAR_LAYERS`."""

from __future__ import annotations

from conformance import hybrid

globals().update(hybrid.tests())
