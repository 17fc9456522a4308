"""Known-bad twins of the clauses in conformance/clauses/model, in files of the same names."""
