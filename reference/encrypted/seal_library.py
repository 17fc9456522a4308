"""A wrapper of seal-python: keys, encryption and decryption under the one parameter set, as coefficient arrays."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .envelope import EncryptionError

Coefficients = NDArray[np.uint64]
PLAIN_HEAD, CIPHER_HEAD = 88, 113  # bytes before the coefficients of a plaintext, and of a ciphertext


class Library:
    """seal-python with the scheme BFV: n coefficients, one prime modulus q, plaintexts modulo 2^bits, a ternary key.

    The client writes the heads of the library's own formats itself, so that it never parses a server's bytes in them.

    Args:
        size: n.   modulus: q.   bits: of plaintexts.
    Raises:
        ModuleNotFoundError: if the library is not installed, with the command that installs it.
        EncryptionError: if the library has another modulus, or finds the parameters insecure.
    """

    def __init__(self, size: int, modulus: int, bits: int) -> None:
        self.seal: Any = import_library()
        seal = self.seal
        parameters = seal.EncryptionParameters(seal.scheme_type.bfv)
        parameters.set_poly_modulus_degree(size)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(size, [modulus.bit_length()]))
        parameters.set_plain_modulus(1 << bits)
        self.context = seal.SEALContext(parameters, False, seal.sec_level_type.tc128)
        found = [prime.value() for prime in parameters.coeff_modulus()]
        if not self.context.parameters_set() or found != [modulus]:
            raise EncryptionError(f"seal-python has the moduli {found}: expected [{modulus}], secure at 128 bits")
        self.size = size
        self.plain = seal.compr_mode_type.none
        one = seal.Plaintext(f"1x^{size - 1}")
        self.plain_head = one.to_bytes(self.plain)[:PLAIN_HEAD]
        sample = seal.Encryptor(self.context, self.new_key()).encrypt_symmetric(one)
        self.cipher_head = sample.to_string(self.plain)[:CIPHER_HEAD]

    def new_key(self) -> Any:
        """A new secret key, from the operating system's randomness."""
        return self.seal.KeyGenerator(self.context).secret_key()

    def key_from(self, contents: bytes) -> Any:
        """The secret key from its bytes.

        Raises:
            EncryptionError: if they are no key of these parameters.
        """
        try:
            return self.context.from_secret_str(contents)
        except (RuntimeError, ValueError) as error:
            raise EncryptionError(f"the secret key came with invalid contents: {error}") from None

    def encryptor(self, key: Any) -> "Encryptor":
        """What encrypts under a secret key."""
        return Encryptor(self, key)

    def decryptor(self, key: Any) -> "Decryptor":
        """What decrypts under a secret key."""
        return Decryptor(self, key)


class Encryptor:
    """Encryption under one secret key."""

    def __init__(self, library: Library, key: Any) -> None:
        self.library = library
        self.encryptor = library.seal.Encryptor(library.context, key)
        self.plaintext = library.seal.Plaintext()

    def __call__(self, polynomial: Coefficients) -> Coefficients:
        """The ciphertext of a polynomial [n], modulo 2^bits: both its polynomials, [2, n], modulo q."""
        library = self.library
        self.plaintext.load_bytes(library.context, library.plain_head + polynomial.tobytes())
        contents = self.encryptor.encrypt_symmetric(self.plaintext).to_string(library.plain)
        return np.frombuffer(contents, np.uint64, offset=CIPHER_HEAD).reshape(2, library.size)


class Decryptor:
    """Decryption under one secret key."""

    def __init__(self, library: Library, key: Any) -> None:
        self.library = library
        self.decryptor = library.seal.Decryptor(library.context, key)
        self.ciphertext = library.seal.Ciphertext()

    def __call__(self, ciphertext: Coefficients) -> Coefficients:
        """The polynomial [n], modulo 2^bits, of a ciphertext [2, n], modulo q."""
        library = self.library
        self.ciphertext.load_bytes(library.context, library.cipher_head + ciphertext.tobytes())
        contents = self.decryptor.decrypt(self.ciphertext).to_bytes(library.plain)
        found = np.zeros(library.size, np.uint64)
        values = np.frombuffer(contents, np.uint64, offset=PLAIN_HEAD)  # without the zeros at its end
        found[: len(values)] = values
        return found


def import_library() -> Any:
    """Import seal-python.

    Raises:
        ModuleNotFoundError: if it is not installed, with the command that installs it.
    """
    try:
        import seal
    except ModuleNotFoundError as error:
        if error.name != "seal":
            raise
        raise ModuleNotFoundError(
            "encryption with the backend seal needs seal-python: pip install 'loraspec[fhe]'", name="seal"
        ) from None
    return seal


@lru_cache(maxsize=1)
def opened(size: int, modulus: int, bits: int) -> Library:
    """The library with these parameters, the same object in every call."""
    return Library(size, modulus, bits)
