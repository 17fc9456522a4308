"""Known-bad twins of the clauses in conformance/clauses/batched, in files of the same names."""
