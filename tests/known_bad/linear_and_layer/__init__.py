"""Known-bad twins of the clauses in conformance/clauses/linear_and_layer, each file those of the file of its name."""
