"""Known-bad twins of the clauses in conformance/clauses/model, each file those of the file of its name."""
