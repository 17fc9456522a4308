"""Known-bad twins of the clauses in conformance/clauses/remote, each file those of the file of its name."""
