"""The matrix: what became of each clause on each of several targets, and the forms in which it is shown."""
