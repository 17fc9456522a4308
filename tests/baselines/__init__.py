"""Right implementations, one for each group; a known-bad twin inherits from one and overrides one thing."""
