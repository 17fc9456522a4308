"""Known-bad twins of the clauses in conformance/clauses/merge, each file those of the file of its name."""
