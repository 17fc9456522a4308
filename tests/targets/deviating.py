"""Targets that declare a deviation: one deviates, one does not, and one names an unknown clause."""

from types import SimpleNamespace

import right
import unscaled

DEVIATIONS = {"LIN-FWD-SCALE": "https://example.org/issues/1"}
declared = SimpleNamespace(lora_linear=unscaled.lora_linear, CONFORMANCE={"name": "declared", "deviations": DEVIATIONS})
stale = SimpleNamespace(lora_linear=right.lora_linear, CONFORMANCE={"name": "stale", "deviations": DEVIATIONS})
unknown = SimpleNamespace(lora_linear=right.lora_linear, CONFORMANCE={"deviations": {"LIN-FWT": "a typo"}})
