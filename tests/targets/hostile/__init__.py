"""Targets that try to disturb a run; each file has one test in tests/test_hostile.py."""
