"""Isolation of the judge from a target's code and process."""
