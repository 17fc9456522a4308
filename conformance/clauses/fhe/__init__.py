"""A model split for FHE, in the modes that need no server: `HybridFHEMode`, `HybridFHEModel`, and the quantisers."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="FHE",
    place=110,
    judged="each mode of a split model: integers, noise, range, encryption",
    names="`HybridFHEMode`, `HybridFHEModel`, the quantisers",
    required=("HybridFHEMode", "HybridFHEModel"),
    subjects=("HybridFHEModel", "fhe_backend"),
    alone={"fhe_backend": "an encryption backend: products, noise, keys, damaged bytes, secrecy"},
    positional={"HybridFHEModel": 5, "fhe_backend": 0},
)
