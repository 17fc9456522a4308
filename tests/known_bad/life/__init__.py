"""Known-bad twins of the clauses in conformance/clauses/life, in files of the same names."""
