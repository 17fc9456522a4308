"""Measurements of the suite itself; each is a command: `python -m tests.campaigns.mutation`, `… .alarms` and others."""
