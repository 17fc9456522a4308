"""A model split in two, with the remote modules of `optimized.remote_module`."""

import reference.splitting
from optimized.remote_module import HybridFHEMode, RemoteModule

__all__ = ["HybridFHEMode", "HybridFHEModel", "RemoteModule"]


class HybridFHEModel(reference.splitting.HybridFHEModel):
    """`reference.HybridFHEModel` on fast remote modules."""

    remote_module = RemoteModule
