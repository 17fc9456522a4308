"""Known-bad twins of the clauses in conformance/clauses/distributed, in files of the same names."""
