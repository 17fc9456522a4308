"""Group `distributed`: layers and the gradient norm on several ranks of `torch.distributed`."""

from __future__ import annotations

from conformance import distributed

globals().update(distributed.tests())
