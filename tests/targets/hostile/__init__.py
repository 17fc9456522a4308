"""Targets that do to a run what no implementation should: each is one file, and one test of tests/test_hostile.py."""
