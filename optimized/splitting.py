"""A model split between a client and a server: the reference's."""

from reference.splitting import HybridFHEModel

__all__ = ["HybridFHEModel"]
