"""The backends by name, and the backend for the parameters in a saved model."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .encryption import Backend, ConcreteBackend, noise_of
from .envelope import Parameters
from .noise import PARAMETER_SETS, EncryptionParameters, noise_std
from .seal_backend import SEAL, PackedParameters, SealBackend

NAMED: Mapping[str, Parameters] = {**PARAMETER_SETS, "seal": SEAL}
"""The parameters of each backend that a name stands for."""

DEFAULT, WITHOUT_SEAL = "seal", "exact"
"""The default backend, and the one in its place where seal-python is not installed."""

MakeBackend = Callable[[Any], Backend]


def default_name() -> str:
    """The name of the default backend here."""
    return WITHOUT_SEAL if importlib.util.find_spec("seal") is None else DEFAULT


def backend_for(parameters: Parameters) -> Backend:
    """The backend for parameters; it evaluates.

    Raises:
        ModuleNotFoundError: if it needs a library for this that is not installed.
        TypeError: for parameters of another backend.
    """
    if isinstance(parameters, PackedParameters):
        return SealBackend(parameters)
    if isinstance(parameters, EncryptionParameters):
        return ConcreteBackend(parameters)
    raise TypeError(f"parameters are {type(parameters).__name__}: expected EncryptionParameters or PackedParameters")


def parameters_from(numbers: Mapping[str, Any]) -> Parameters:
    """The parameters from their fields, as `dataclasses.asdict` gives them.

    Raises:
        TypeError: for other fields.   ValueError: for a number out of range.
    """
    if "modulus" in numbers:
        return PackedParameters(**{**numbers, "dropped": tuple(numbers.get("dropped", ()))})
    return EncryptionParameters(**numbers)


def noise_of_named(name: str, weight: Tensor) -> Tensor:
    """The deviation of the noise under a named backend, float64 [N], see `noise_of`; it needs no library."""
    parameters = NAMED[name]
    if isinstance(parameters, EncryptionParameters):
        return noise_std(parameters, weight)
    return noise_of(backend_for(parameters), weight)
