"""The report of a run: the verdict, its files, and the ways to show it."""
