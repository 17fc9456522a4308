"""Known-bad twins of the clauses in conformance/clauses/experts, in files of the same names."""
