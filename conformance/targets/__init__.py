"""Targets for libraries that people use: thin wrappers with this project's names around the library's own layer."""
