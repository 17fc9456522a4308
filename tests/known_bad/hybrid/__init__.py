"""Known-bad twins of the clauses in conformance/clauses/hybrid, each file those of the file of its name."""
