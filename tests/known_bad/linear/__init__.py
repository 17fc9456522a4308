"""Known-bad twins of the clauses in conformance/clauses/linear, each file those of the file of its name."""
