"""What any LoRA linear computes, function or layer: the clauses that the groups `linear` and `layer` share."""

from conformance.specification.groups import Shared

SHARED = Shared(groups=("linear", "layer"))
