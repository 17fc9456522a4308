"""Helpers of the tests: processes, servers, small targets, the known-bad twins and their recorded failures."""
