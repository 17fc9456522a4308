"""Tests of the suite itself: known-bad implementations, correct variants, messages, command line, reports."""
