"""The choice of an implementation for given operands; `why_not_…` gives the reason against a faster one, or None."""
