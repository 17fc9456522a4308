"""Known-bad twins of the clauses in conformance/clauses/fhe, in files of the same names."""
