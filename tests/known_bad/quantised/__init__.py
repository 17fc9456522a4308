"""Known-bad twins of the clauses in conformance/clauses/quantised, in files of the same names."""
