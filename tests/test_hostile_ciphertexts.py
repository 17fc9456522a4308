"""Damaged or forged ciphertexts and keys: each raises an error, and the process survives.

A forged message has a right checksum, which any client of a server can compute. The backend must refuse it before
the encryption library sees it, because the library would abort the process.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import pytest
import torch

from reference.encrypted import envelope
from reference.encrypted.encryption import EncryptionError, Keys
from reference.encrypted.envelope import EVALUATION, INPUTS, RESULT, SECRET, Envelope
from reference.encrypted.noise import TOY
from tests.support.encrypted_products import BACKEND, WEIGHT, product
from tests.support.encrypted_products import INPUTS as PLAIN


def damaged(message: bytes) -> Iterator[bytes]:
    """The message truncated at many points, lengthened, with single bits flipped, and replaced by random bytes."""
    chance = random.Random(0)
    header = 89
    inside = [chance.randrange(len(message)) for _ in range(20)]
    for cut in (*range(0, header + 20, 5), header, *inside, len(message) - 1):
        yield message[:cut]
    yield message + b"\0"
    for at in (*range(header + 8), *inside, len(message) - 1):
        flipped = bytearray(message)
        flipped[at] ^= 1 << chance.randrange(8)
        yield bytes(flipped)
    for length in (1, header - 1, header, 200, len(message)):
        yield chance.randbytes(length)
        yield message[:8] + chance.randbytes(length)


def forged(message: bytes, another: bytes, kind: str) -> Iterator[bytes]:
    """Messages with right checksums whose contents have a wrong length or contain wrong sizes.

    `another` is a message of the same sizes.
    """
    sealed = Envelope.open(message, kind, TOY)
    contents = sealed.contents
    chance = random.Random(1)

    def forge(**changes: object) -> bytes:
        return dataclasses.replace(sealed, **changes).seal()  # type: ignore[arg-type]

    for cut in (0, 1, 8, len(contents) // 2, len(contents) - 8, len(contents) - 1):
        yield forge(contents=contents[:cut])
    yield forge(contents=contents + contents)
    yield forge(contents=chance.randbytes(len(contents)))
    for at in _sizes(contents, Envelope.open(another, kind, TOY).contents):
        for value in (0, 1, 2**40, 2**62):
            if contents[at : at + 8] != value.to_bytes(8, "little"):
                yield forge(contents=contents[:at] + value.to_bytes(8, "little") + contents[at + 8 :])
    if sealed.columns:
        for changes in ({"rows": sealed.rows + 1}, {"rows": 2**63}, {"columns": 2**63}, {"columns": 0}, {"rows": 0}):
            yield forge(**changes)


def _sizes(contents: bytes, others: bytes) -> Iterator[int]:
    """Offsets of small 8-byte words that two messages share: these are sizes and lengths, coefficients are random."""
    for at in range(0, len(contents) - 7, 8):
        word = contents[at : at + 8]
        if word == others[at : at + 8] and int.from_bytes(word, "little") < 10**6:
            yield at


class TestHostileBytes:
    @pytest.mark.parametrize(
        ("message", "says"),
        [
            (b"", "came as 0 bytes: expected at least the 89 of its header"),
            (b"LORAFHE\x01", "came as 8 bytes"),
            (bytes(200), "these bytes are something else"),
            (b"LORAFHE\x01" + bytes(200), "wrong checksum: it was cut off or changed on its way"),
        ],
        ids=["nothing", "little", "other", "changed"],
    )
    def test_an_error_says_how_the_message_is_damaged(self, keys: Keys, message: bytes, says: str) -> None:
        with pytest.raises(EncryptionError, match=f"encrypted inputs {says}|encrypted inputs came with.* {says}"):
            BACKEND.evaluate(message, WEIGHT, keys.evaluation)

    def test_a_damaged_ciphertext_is_refused(self, keys: Keys, ciphertext: bytes) -> None:
        for message in damaged(ciphertext):
            with pytest.raises(EncryptionError, match="encrypted inputs came"):
                BACKEND.evaluate(message, WEIGHT, keys.evaluation)

    def test_a_damaged_result_is_refused(self, keys: Keys, result: bytes) -> None:
        for message in damaged(result):
            with pytest.raises(EncryptionError, match="an encrypted result came"):
                BACKEND.decrypt(message, 2, 2, keys)

    def test_damaged_keys_are_refused(self, keys: Keys, ciphertext: bytes) -> None:
        for message in damaged(keys.secret):
            with pytest.raises(EncryptionError, match="a secret key came") as caught:
                BACKEND.encrypt(WEIGHT.abs(), Keys(message, keys.evaluation))
            assert repr(keys.secret[100:110])[2:-1] not in str(caught.value)
        for message in list(damaged(keys.evaluation))[::12]:
            with pytest.raises(EncryptionError, match="an evaluation key came"):
                BACKEND.evaluate(ciphertext, WEIGHT, message)

    def test_a_forged_ciphertext_never_reaches_the_library(self, keys: Keys, ciphertext: bytes) -> None:
        for message in forged(ciphertext, BACKEND.encrypt(PLAIN, keys), INPUTS):
            with pytest.raises((EncryptionError, ValueError), match=r"encrypted inputs came as|contents|features"):
                BACKEND.evaluate(message, WEIGHT, keys.evaluation)

    def test_a_forged_result_never_reaches_the_library(self, keys: Keys, result: bytes) -> None:
        another = BACKEND.evaluate(BACKEND.encrypt(PLAIN, keys), WEIGHT, keys.evaluation)
        for message in forged(result, another, RESULT):
            shape = Envelope.open(message, RESULT, TOY)
            with pytest.raises(EncryptionError, match=r"an encrypted result came (as|with invalid contents)"):
                BACKEND.decrypt(message, shape.rows, shape.columns, keys)

    def test_forged_keys_never_reach_the_library(self, keys: Keys, ciphertext: bytes) -> None:
        sealed = Envelope.open(keys.secret, SECRET, TOY)
        for at in (0, 2056, 2064, 4120):
            contents = sealed.contents[:at] + (2**40).to_bytes(8, "little") + sealed.contents[at + 8 :]
            with pytest.raises(EncryptionError, match="a secret key came with invalid contents"):
                BACKEND.encrypt(
                    WEIGHT.abs(), Keys(dataclasses.replace(sealed, contents=contents).seal(), keys.evaluation)
                )
        sealed = Envelope.open(keys.evaluation, EVALUATION, TOY)
        for at in (0, *range(len(sealed.contents) - 72, len(sealed.contents), 8)):
            contents = sealed.contents[:at] + (2**40).to_bytes(8, "little") + sealed.contents[at + 8 :]
            renamed = dataclasses.replace(sealed, contents=contents, key_id=envelope.digest(contents)[:16])
            with pytest.raises(EncryptionError, match="an evaluation key came with invalid contents"):
                BACKEND.evaluate(ciphertext, WEIGHT, renamed.seal())

    def test_a_key_with_the_id_of_another_key_is_refused(self, keys: Keys, others: Keys, ciphertext: bytes) -> None:
        sealed = Envelope.open(others.evaluation, EVALUATION, TOY)
        name = Envelope.open(keys.evaluation, EVALUATION, TOY).key_id
        with pytest.raises(EncryptionError, match="an evaluation key came under the name of another"):
            BACKEND.evaluate(ciphertext, WEIGHT, dataclasses.replace(sealed, key_id=name).seal())

    def test_arbitrary_coefficients_and_seeds_are_accepted(self, keys: Keys, ciphertext: bytes, result: bytes) -> None:
        chance = random.Random(2)
        sealed = Envelope.open(ciphertext, INPUTS, TOY)
        for fill in (b"\xff" * 1920, chance.randbytes(1920)):
            row = sealed.contents[:24] + fill + sealed.contents[24 + 1920 : len(sealed.contents) // 2]
            message = dataclasses.replace(sealed, rows=1, contents=row).seal()
            changed = BACKEND.evaluate(message, WEIGHT, keys.evaluation)
            assert BACKEND.decrypt(changed, 1, 2, keys).shape == (1, 2)
        sealed = Envelope.open(result, RESULT, TOY)
        row = sealed.contents[:24] + b"\xff" * 1456 + sealed.contents[24 + 1456 : len(sealed.contents) // 2]
        assert BACKEND.decrypt(dataclasses.replace(sealed, rows=1, contents=row).seal(), 1, 2, keys).shape == (1, 2)

    def test_a_panic_of_the_library_is_an_error_and_the_next_call_works(
        self, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("reference.encrypted.encryption.layout.follows", lambda *_: True)
        sealed = Envelope.open(keys.secret, SECRET, TOY)
        broken = dataclasses.replace(sealed, contents=sealed.contents[:-9]).seal()
        with pytest.raises(EncryptionError, match=r"encrypt: concrete-ml-extensions stopped at .*UnexpectedEof"):
            BACKEND.encrypt(WEIGHT.abs(), Keys(broken, keys.evaluation))
        monkeypatch.undo()
        assert torch.equal(product(BACKEND, WEIGHT.abs(), WEIGHT, keys), WEIGHT.abs() @ WEIGHT.T)

    def test_a_keyboard_interrupt_passes_through(self, keys: Keys) -> None:
        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt(done, total)

        with pytest.raises(KeyboardInterrupt):
            BACKEND.encrypt(WEIGHT.abs(), keys, progress=interrupt)
