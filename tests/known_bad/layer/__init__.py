"""Known-bad twins of the clauses in conformance/clauses/layer, each file those of the file of its name."""
