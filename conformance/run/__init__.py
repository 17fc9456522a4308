"""A run: its plan, the processes that judge its trials, and the results they record."""
