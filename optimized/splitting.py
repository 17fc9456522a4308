"""A model split in two, with the remote modules of `optimized.service.remote_module`."""

import reference.splitting
from optimized.service.remote_module import RemoteModule


class HybridFHEModel(reference.splitting.HybridFHEModel):
    """`reference.HybridFHEModel` with fast remote modules."""

    remote_module = RemoteModule
