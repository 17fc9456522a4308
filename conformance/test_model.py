"""Group `model`: `patch_linear_module`, `apply_lora_to_linear_modules`, and how modules are matched."""

from __future__ import annotations

from conformance import model

globals().update(model.tests())
