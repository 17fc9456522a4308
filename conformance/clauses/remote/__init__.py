"""`HybridFHEModel` in mode remote, and the server process of `serve` that answers it."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="REM",
    place=120,
    judged="client and server: results, contents of the wire, erased weights",
    names="`HybridFHEModel(backend=…)`, `serve`",
    required=("HybridFHEModel", "HybridFHEModel(backend)", "serve"),
    subjects=("HybridFHEModel",),
    positional={"serve": 3},
)
