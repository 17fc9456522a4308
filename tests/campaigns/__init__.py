"""Measurements of the suite itself, each a command: `python -m tests.campaigns.mutation`, `… .alarms` and others."""
