"""Floating-point formats, and the error budget derived from them."""
