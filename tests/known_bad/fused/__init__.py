"""Known-bad twins of the clauses in conformance/clauses/fused, in files of the same names."""
