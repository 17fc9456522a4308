"""A model split in two, with the remote modules of `optimized.service.remote_module`."""

import reference.split_model
from optimized.service.remote_module import RemoteModule


class HybridFHEModel(reference.split_model.HybridFHEModel):
    """`reference.HybridFHEModel` with fast remote modules."""

    remote_module = RemoteModule
