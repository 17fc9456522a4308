"""Known-bad twins of the clauses in conformance/clauses/merge, in files of the same names."""
