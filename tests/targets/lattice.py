"""A target that exposes only a backend."""

from tests.baselines.fhe_backend import Right

CONFORMANCE = {"name": "lattice", "version": "1"}
fhe_backend = Right().fhe_backend
