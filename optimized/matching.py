"""Which modules get an adapter: decided once for a model, so this is the reference's rule."""

from reference.matching import ModuleMatcher, wildcard_match

__all__ = ["ModuleMatcher", "wildcard_match"]
