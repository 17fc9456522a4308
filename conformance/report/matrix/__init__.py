"""The matrix: the status of each clause on each of several targets, and the formats in which it is shown."""
