"""Known-bad twins of the clauses in conformance/clauses/dora, in files of the same names."""
