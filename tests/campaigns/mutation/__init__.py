"""A mechanical mutator: small edits of `reference/` and `optimized/`, each of which the suite should notice."""
