"""Known-bad twins of the clauses in conformance/clauses/fhe, each file those of the file of its name."""
