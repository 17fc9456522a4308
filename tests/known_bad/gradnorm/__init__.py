"""Known-bad twins of the clauses in conformance/clauses/gradnorm, in files of the same names."""
