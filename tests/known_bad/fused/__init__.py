"""Known-bad twins of the clauses in conformance/clauses/fused, each file those of the file of its name."""
