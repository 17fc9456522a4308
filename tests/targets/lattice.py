"""A target that offers a backend and nothing else."""

from tests.baselines.fhe_backend import Right

CONFORMANCE = {"name": "lattice", "version": "1"}
fhe_backend = Right().fhe_backend
