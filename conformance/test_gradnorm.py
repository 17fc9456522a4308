"""Group `gradnorm`: `clip_grad_norm_` and `grad_norm`."""

from __future__ import annotations

from conformance import gradnorm

globals().update(gradnorm.tests())
