"""The noise of encrypted products: a law has no faster variant, so this is the reference's."""

from reference.encrypted.noise import (
    EXACT,
    FAST,
    PARAMETER_SETS,
    TOY,
    EncryptionParameters,
    check_range,
    noise_std,
    simulate,
    wrap,
)

__all__ = [
    "EXACT",
    "FAST",
    "PARAMETER_SETS",
    "TOY",
    "EncryptionParameters",
    "check_range",
    "noise_std",
    "simulate",
    "wrap",
]
