"""Group `training`: `LoraTraining`, one step of it, and `replace_layers_with_custom`."""

from __future__ import annotations

from conformance import training

globals().update(training.tests())
