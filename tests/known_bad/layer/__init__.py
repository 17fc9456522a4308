"""Known-bad twins of the clauses in conformance/clauses/layer, in files of the same names."""
