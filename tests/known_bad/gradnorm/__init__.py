"""Known-bad twins of the clauses in conformance/clauses/gradnorm, each file those of the file of its name."""
