"""Reproducers: a failing check written as a standalone script."""
