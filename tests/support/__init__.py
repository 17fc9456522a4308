"""Helpers of the tests: processes, servers, small targets, the twins and what is recorded of them."""
