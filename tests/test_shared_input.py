"""An input that several modules of a split model take is encrypted once and sent once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.clauses.remote.wire import Wire
from reference import EncryptionError, RemoteError
from reference.encrypted.polynomial_layout import Packing
from reference.encrypted.seal_backend import SEAL
from tests.support.served_models import PLAIN, Client, save_models
from tests.support.server import PlainBackend, serving
from tests.support.split_attention import Recorded, X, split

pytest.importorskip("seal")


class TestSharedInput:
    def test_modules_that_take_the_same_input_share_its_encryption(self) -> None:
        backend = Recorded()
        hybrid = split(backend)
        assert torch.equal(hybrid(X, "execute"), hybrid(X, "disable"))
        assert [options for _, _, options in backend.encrypted] == [{"outputs": 5}]
        assert backend.decrypted == [backend.encrypted[0][1]] * 3

    def test_a_module_never_multiplies_a_ciphertext_twice(self) -> None:
        """The same input in two calls is encrypted twice, under two keys."""
        backend = Recorded()
        hybrid = split(backend)
        for _ in range(2):
            hybrid(X, "execute")
        assert len({keys.evaluation for _, keys, _ in backend.encrypted}) == len(backend.encrypted) == 2

    def test_another_input_is_encrypted_anew(self) -> None:
        backend = Recorded()
        hybrid = split(backend)
        hybrid.set_fhe_mode("execute")
        for module, x in (("q", X), ("k", X + X.flip(1)), ("v", X[:3])):
            hybrid.model.get_submodule(module)(x)
        assert len({keys.evaluation for _, keys, _ in backend.encrypted}) == 3

    def test_a_failed_product_and_new_keys_end_the_sharing(self) -> None:
        backend = Recorded()
        hybrid = split(backend)
        hybrid.set_fhe_mode("execute")
        hybrid.model.q(X)  # type: ignore[operator]
        hybrid.keys = None
        hybrid.model.k(X)  # type: ignore[operator]
        assert len(backend.encrypted) == 2
        backend.evaluate = lambda *_: b"nothing"  # type: ignore[method-assign, assignment]
        with pytest.raises(EncryptionError, match=r"v: an encrypted result came as 7 bytes: expected at least"):
            hybrid.model.v(X)  # type: ignore[operator]
        assert hybrid._split.shared is None

    def test_an_input_crosses_the_wire_once(self, tmp_path: Path) -> None:
        hybrid = split()
        expected = hybrid(X, "disable")
        hybrid.save_and_clear_private_info(tmp_path)
        one = Packing.cheapest(4, 6, 5, SEAL.polynomial_size).bytes_up(6)
        with serving(tmp_path / "server") as server, Wire(server.port) as wire:
            hybrid._split.server = wire.address
            assert torch.equal(hybrid(X, "remote"), expected)
            sent = wire.sent_bytes()
            assert one < sent < one + 4000
            assert torch.equal(hybrid(X, "remote"), expected)  # asks the server for its digests no more
            assert 2 * one < wire.sent_bytes() < 2 * sent
            asked = [line for line in server.logged() if "/health" in line or "/keys" in line]
        assert len(asked) == 1

    def test_a_ciphertext_that_the_server_lost_is_sent_again(self, tmp_path: Path) -> None:
        with serving(save_models(tmp_path), *PLAIN) as server:
            client = Client(server.address)
            q = client.inputs()
            ciphertext = PlainBackend().encrypt(q, client.keys)
            options: dict[str, Any] = {"name": "ab" * 32, "sent": True}
            given = "one", "fc.forward_module", ciphertext, client.keys.evaluation
            first = client.remote.evaluate(*given, **options)
            assert client.remote.evaluate(*given, **options) == first
            lines = [line for line in server.logged() if "/evaluate" in line]
            assert sum(" 424 " in line for line in lines) == 1
            assert f"{len(ciphertext)} bytes in" not in lines[-1]
            assert " 200 " in lines[-1]
            with pytest.raises(
                RemoteError, match="refused with 400: the header Ciphertext is no name: expected 64 hex"
            ):
                client.remote.evaluate(*given, name="a/b")
