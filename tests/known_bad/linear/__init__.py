"""Known-bad twins of the clauses in conformance/clauses/linear, in files of the same names."""
