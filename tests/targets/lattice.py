"""A target that offers a backend and nothing else."""

from tests.right_backend import Right

CONFORMANCE = {"name": "lattice", "version": "1"}
fhe_backend = Right().fhe_backend
