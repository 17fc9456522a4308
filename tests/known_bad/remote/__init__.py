"""Known-bad twins of the clauses in conformance/clauses/remote, in files of the same names."""
