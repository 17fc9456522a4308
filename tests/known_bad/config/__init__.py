"""Known-bad twins of the clauses in conformance/clauses/config, each file those of the file of its name."""
