"""Known-bad twins of the clauses in conformance/clauses/hybrid, in files of the same names."""
