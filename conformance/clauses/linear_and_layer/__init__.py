"""The clauses on LoRA linears that the groups `linear` (functions) and `layer` (modules) share."""

from conformance.specification.groups import Shared

SHARED = Shared(groups=("linear", "layer"))
