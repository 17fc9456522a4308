"""Mutation testing: small edits of `reference/` and `optimized/`, each of which the suite should detect."""
