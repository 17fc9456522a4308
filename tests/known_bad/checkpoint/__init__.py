"""Known-bad twins of the clauses in conformance/clauses/checkpoint, in files of the same names."""
