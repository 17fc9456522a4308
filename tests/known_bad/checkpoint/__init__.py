"""Known-bad twins of the clauses in conformance/clauses/checkpoint, each file those of the file of its name."""
