"""Targets that cannot be tested: no public names, a wrong signature, not callable, a wrong declaration."""

from types import SimpleNamespace

import right

empty = SimpleNamespace()
unbound = SimpleNamespace(lora_linear=lambda x, weight: x @ weight)
uncallable = SimpleNamespace(lora_linear=5)
misdeclared = SimpleNamespace(lora_linear=right.lora_linear, CONFORMANCE={"dtype": ["float32"]})
