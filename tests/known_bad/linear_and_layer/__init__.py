"""Known-bad twins of the clauses in conformance/clauses/linear_and_layer, in files of the same names."""
