"""Encrypted integer products: parameter sets and their noise, keys, messages, and the backend."""
