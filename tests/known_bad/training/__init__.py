"""Known-bad twins of the clauses in conformance/clauses/training, in files of the same names."""
