"""Known-bad twins of the clauses in conformance/clauses/training, each file those of the file of its name."""
