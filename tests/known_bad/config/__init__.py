"""Known-bad twins of the clauses in conformance/clauses/config, in files of the same names."""
