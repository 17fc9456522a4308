"""Group `fused`: `lora_qkv` and `lora_mlp`."""

from __future__ import annotations

from conformance import fused

globals().update(fused.tests())
