"""A run: which trials are planned, the processes that judge them, and what becomes of each."""
