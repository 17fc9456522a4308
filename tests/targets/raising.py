"""A module that raises on import."""

raise ValueError("no licence found")
