"""Known-bad twins of the clauses in conformance/clauses/dora, each file those of the file of its name."""
