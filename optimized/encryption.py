"""Encrypted products: the time is spent in the encryption library, so this is the reference's."""

from reference.encrypted.encryption import Backend, ConcreteBackend, EncryptionError, EncryptionParameters, Keys

__all__ = ["Backend", "ConcreteBackend", "EncryptionError", "EncryptionParameters", "Keys"]
