"""Targets for widely used libraries: thin wrappers that give the library's own layer this project's names."""
