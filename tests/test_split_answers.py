"""A split model and its server: no wrong answer is used, and no other model is asked."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import EncryptionError, HybridFHEModel, RemoteClient, RemoteError, SealBackend
from reference.encrypted import backends
from reference.encrypted.answer_check import weight_digest
from reference.encrypted.envelope import RESULT, Envelope
from reference.encrypted.polynomial_layout import Packing
from reference.encrypted.seal_backend import SEAL
from tests.support.served_models import PLAIN, save_models
from tests.support.server import PlainBackend, answering, serving
from tests.support.split_attention import NAMES, Attention, Recorded, X, split

pytest.importorskip("seal")


class Here:
    """A server in this process, in place of a client; `change` changes each result.

    Attributes:
        weights: what it multiplies by.   tells: the digests that it tells.
    """

    address = "http://here"

    def __init__(self, hybrid: HybridFHEModel, change: Callable[[bytes], bytes] = lambda result: result) -> None:
        quantized = {name: module.quantized for name, module in hybrid.remote_modules.items()}
        self.weights = {name: layer.weight for name, layer in quantized.items() if layer is not None}
        self.tells = {name: weight_digest(weight) for name, weight in self.weights.items() if weight is not None}
        self.change = change
        vars(hybrid._split)["client"] = self

    def digests(self, model_name: str) -> dict[str, str]:
        assert model_name == "model"
        return self.tells

    def evaluate(self, model_name: str, module_name: str, ciphertext: bytes, evaluation: bytes, **_: Any) -> bytes:
        weight = self.weights[module_name]
        assert weight is not None
        return self.change(SealBackend().evaluate(ciphertext, weight, evaluation))


def plus_one(result: bytes) -> bytes:
    """A result whose element [2, 1] decrypts to one more: the server adds q/t to one coefficient, without any key."""
    sealed = Envelope.open(result, RESULT, SEAL)
    contents, at = bytearray(sealed.contents), Packing.HEADER + 4 * (1 * 4 + 2)
    step = round(SEAL.modulus / 2**SEAL.bits / 2 ** SEAL.dropped[0])
    number = (int.from_bytes(contents[at : at + 4], "little") + step) % (SEAL.modulus >> SEAL.dropped[0])
    contents[at : at + 4] = number.to_bytes(4, "little")
    return dataclasses.replace(sealed, contents=bytes(contents)).seal()


class TestAnswers:
    def test_an_answer_off_by_one_in_one_element_is_refused(self) -> None:
        hybrid = split(names=["q"])
        here = Here(hybrid)
        keys = (backend := SealBackend()).keygen()
        q = torch.arange(24).reshape(4, 6)
        weight = here.weights["q"]
        assert weight is not None
        honest = backend.evaluate(backend.encrypt(q, keys, outputs=5), weight, keys.evaluation)
        off = backend.decrypt(plus_one(honest), 4, 5, keys) - q @ weight.T
        assert off.nonzero().tolist() == [[2, 1]]
        assert int(off[2, 1]) == 1
        here.change = plus_one
        with pytest.raises(
            EncryptionError, match=r"evaluate model/q at http://here: the answer is wrong in 1 of 4 rows"
        ):
            hybrid(X, "remote")
        here.change = lambda result: result
        assert torch.equal(hybrid(X, "remote"), hybrid(X, "disable"))

    def test_an_old_answer_is_refused(self) -> None:
        hybrid = split(names=["q"])
        old: list[bytes] = []

        def first(result: bytes) -> bytes:
            old.append(result)
            return old[0]

        Here(hybrid, first)
        hybrid(X, "remote")
        with pytest.raises(
            EncryptionError, match=r"model/q at http://here: an encrypted result came under the keys \w+"
        ):
            hybrid(X, "remote")

    def test_the_answer_of_another_module_with_the_same_keys_is_refused(self) -> None:
        hybrid = split(names=["k", "v"])
        here = Here(hybrid)
        here.weights["v"] = here.weights["k"]
        with pytest.raises(EncryptionError, match=r"model/v at .* the server multiplied by another weight"):
            hybrid(X, "remote")

    def test_a_truncated_answer_is_refused(self) -> None:
        hybrid = split(names=["q"])
        Here(hybrid, lambda result: result[:-1])
        with pytest.raises(EncryptionError, match=r"an encrypted result came with a wrong checksum"):
            hybrid(X, "remote")

    def test_answers_are_checked_in_mode_execute_and_for_every_backend(self) -> None:
        class OffByOne(PlainBackend):
            def decrypt(self, *given: Any, **options: Any) -> Tensor:
                raw = super().decrypt(*given, **options)
                raw[1, 0] += 1
                return raw

        hybrid = split(OffByOne())
        with pytest.raises(EncryptionError, match=r"^q: the answer is wrong in 1 of 4 rows, first in row 1: expected"):
            hybrid(X, "execute")

    def test_a_loaded_client_checks_answers_too(self, tmp_path: Path) -> None:
        owner = split(names=["q"])
        expected, here = owner(X, "disable"), Here(owner)
        owner.save_and_clear_private_info(tmp_path)
        hybrid = HybridFHEModel(Attention(), ["q"], "http://127.0.0.1:9")
        hybrid.load_client(tmp_path)
        vars(hybrid._split)["client"] = here
        assert torch.equal(hybrid(X, "remote"), expected)
        here.change = plus_one
        with pytest.raises(EncryptionError, match="the answer is wrong in 1 of 4 rows, first in row 2"):
            hybrid(X, "remote")


class TestOpening:
    def test_another_model_is_refused_before_anything_is_encrypted(self) -> None:
        backend = Recorded()
        hybrid = split(backend)
        here = Here(hybrid)
        here.tells = here.tells | {"v": "f" * 64}
        for call in (lambda: hybrid(X, "remote"), lambda: hybrid.model.v(X)):  # type: ignore[operator]
            with pytest.raises(
                RemoteError, match=r"model at http://here has other integers, of the digest f{12}, for v"
            ):
                call()
        del here.tells["v"]
        with pytest.raises(RemoteError, match=r"has no digest for v: expected \w{12}, as compiled here"):
            hybrid(X, "remote")
        assert backend.encrypted == []

    def test_an_unknown_model_names_the_nearest(self, tmp_path: Path) -> None:
        with serving(save_models(tmp_path), *PLAIN) as server:
            client = RemoteClient(server.address)
            assert set(client.digests("two")) == {"fc.forward_module", "wide"}
            with pytest.raises(RemoteError, match=r"has no model 'tow': did you mean 'two'\?"):
                client.digests("tow")
            with pytest.raises(RemoteError, match=r"has no model 'model': expected one of one, two"):
                client.digests("model")


OURS = b"HTTP/1.1 200 X\r\nLoraspec-Protocol: 1\r\nContent-Type: application/octet-stream\r\n"


class TestSizes:
    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (OURS + b"Content-Length: 99\r\n\r\n" + bytes(99), "99 bytes came: expected a result of 100"),
            (OURS + b"Content-Length: 101\r\n\r\n" + bytes(101), "more than 100 bytes came: expected at most that"),
            (OURS + b"\r\n" + bytes(10**6), "more than 100 bytes came"),
        ],
    )
    def test_an_answer_of_another_size_is_refused(self, answer: bytes, says: str) -> None:
        def say(connection: Any) -> None:
            connection.recv(10**6)
            try:
                connection.sendall(answer)
            except OSError:  # the client has closed the connection
                return

        with answering(say) as address:
            client = RemoteClient(address, 10.0)
            with pytest.raises(RemoteError, match=says):
                client.evaluate("model", "q", b"ciphertext", b"key", size=100)
            client.close()

    @pytest.mark.parametrize("name", ["seal", "toy"])
    def test_the_size_of_a_result_follows_from_the_ciphertext(self, name: str) -> None:
        pytest.importorskip("concrete_ml_extensions")
        backend: Any = backends.backend_for(backends.NAMED[name])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not secure")
            keys = backend.keygen()
        for rows, columns in ((1, 1), (3, 5), (0, 2)):
            q, weight = torch.ones(rows, 6, dtype=torch.int64), torch.ones(columns, 6, dtype=torch.int64)
            ciphertext = backend.encrypt(q, keys)
            result = backend.evaluate(ciphertext, weight, keys.evaluation)
            assert backend.result_bytes(ciphertext, columns) == len(result)


class TestDefault:
    def test_seal_is_the_default_where_it_is_installed(self) -> None:
        hybrid = split()
        assert hybrid._split.parameters == SEAL
        assert isinstance(hybrid._split.backend, SealBackend)

    def test_without_it_the_default_is_exact_and_encrypting_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("concrete_ml_extensions")
        monkeypatch.setattr(backends.importlib.util, "find_spec", lambda _: None)
        hybrid = split()
        assert hybrid._split.parameters.name == "exact"
        hybrid(X, "simulate")
        says = r"the backend exact encrypts, because seal-python is not installed.*: a row takes seconds in place"
        with pytest.warns(UserWarning, match=says):
            assert hybrid._split.backend.parameters.name == "exact"

    def test_a_client_uses_the_backend_of_the_saved_model(self, tmp_path: Path) -> None:
        split("toy").save_and_clear_private_info(tmp_path)
        hybrid = HybridFHEModel(Attention(), NAMES)
        hybrid.load_client(tmp_path)
        assert hybrid._split.parameters.name == "toy-insecure"
        other = HybridFHEModel(Attention(), NAMES, backend="seal")
        with pytest.raises(ValueError, match="was saved for other parameters than seal: expected backend='toy'"):
            other.load_client(tmp_path)
        assert other.remote_modules["q"].private_module is not None
