"""What computes given operands: every `why_not_…` says why a faster way is not taken, or None where it is."""
