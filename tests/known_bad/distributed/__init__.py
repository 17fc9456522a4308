"""Known-bad twins of the clauses in conformance/clauses/distributed, each file those of the file of its name."""
