"""Who may use a server: TLS, client certificates, bearer tokens, and the warnings of a server without them."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reference.encrypted.noise import EXACT, TOY, EncryptionParameters, why_insecure
from reference.service.access import Access
from reference.service.admission import Quotas
from reference.service.client import RemoteClient, RemoteError
from reference.service.protocol import Limits
from tests.support.served_models import PLAIN, Client, save_models
from tests.support.server import Server, serving

FILES = Path(__file__).parent / "support" / "certificates"
AUTHORITY, CLIENT = FILES / "authority.pem", (FILES / "client.pem", FILES / "client.key")
SERVER = ("--certificate", str(FILES / "server.pem"), "--private-key", str(FILES / "server.key"))
TOKEN = "an-unguessable-token-0123456789"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a certificate and a token."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"# two clients\nanother-token-0123456789\n\n{TOKEN}\n")
    models = save_models(tmp_path_factory.mktemp("server"))
    with serving(models, *PLAIN, *SERVER, "--client-ca", str(AUTHORITY), "--tokens", str(tokens)) as server:
        yield server


def test_a_client_with_certificate_and_token_is_served(guarded: Server) -> None:
    assert guarded.address.startswith("https://127.0.0.1:")
    client = Client(guarded.address, ca=AUTHORITY, certificate=CLIENT, token=TOKEN)
    assert client.is_right()
    assert Client(guarded.address, ca=AUTHORITY, certificate=CLIENT, token="another-token-0123456789").is_right()
    assert copy.deepcopy(client.remote).health()["status"] == "ok"
    with pytest.raises(TypeError, match="cannot be pickled: they would leak"):
        pickle.dumps(client.remote)
    assert TOKEN not in repr(client.remote)
    assert not any(TOKEN in line for line in guarded.log)


@pytest.mark.parametrize("token", [None, TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "x"])
def test_another_token_is_refused(guarded: Server, token: str | None) -> None:
    remote = RemoteClient(guarded.address, ca=AUTHORITY, certificate=CLIENT, token=token)
    why = "without a token" if token is None else "with an unknown token"
    with pytest.raises(RemoteError, match=f"refused with 401: the request came {why}: expected Authorization: Bearer"):
        remote.health()
    with pytest.raises(RemoteError, match="401"):
        remote.evaluate("one", "fc.forward_module", b"", bytes(4000))


def test_without_the_authority_or_a_certificate_there_is_no_connection(guarded: Server) -> None:
    with pytest.raises(RemoteError, match=r"no TLS connection \(.*expected a server that the authorities know"):
        RemoteClient(guarded.address, certificate=CLIENT, token=TOKEN).health()
    with pytest.raises(RemoteError, match=r"the connection broke|no whole HTTP answer|no TLS connection"):
        RemoteClient(guarded.address, ca=AUTHORITY, token=TOKEN, retries=0).health()
    with pytest.raises(RemoteError, match=r"no whole HTTP answer|the connection broke"):
        RemoteClient(guarded.address.replace("https", "http"), retries=0).health()


def test_all_tokens_are_compared_by_digests_of_equal_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that ends at the first difference tells a token letter by letter."""
    import hmac

    from starlette.exceptions import HTTPException

    from reference.service.admission import Tokens

    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    tokens = Tokens([TOKEN, "another-token-0123456789"])
    request: Any = SimpleNamespace(headers={"authorization": f"Bearer {TOKEN}"})
    tokens.check(request)
    request.headers["authorization"] = f"Bearer {TOKEN[:5]}"
    with pytest.raises(HTTPException):
        tokens.check(request)
    assert len(compared) == 4
    assert {len(digest) for pair in compared for digest in pair} == {32}
    request.headers["authorization"] = f"Basic {TOKEN}"
    with pytest.raises(HTTPException):
        tokens.check(request)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"certificate": FILES / "server.pem"}, "only certificate came: TLS needs a certificate and a private_key"),
        ({"client_ca": AUTHORITY}, "only client_ca came"),
        ({"certificate": "no.pem", "private_key": FILES / "server.key"}, "no.pem is no file"),
        ({"certificate": FILES / "server.pem", "private_key": FILES / "client.key"}, "cannot be used .*without a pass"),
        (
            {"certificate": FILES / "server.pem", "private_key": FILES / "locked.key"},
            "the key has a password.: exp",
        ),
        ({"tokens": ["short"]}, "a token has 5 characters: expected at least 16, printable ASCII without spaces"),
        ({"tokens": ["with a space in the middle"]}, "a token has 26 characters"),
    ],
)
def test_a_server_refuses_what_it_cannot_use(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    from reference.service.server import serve

    with pytest.raises(ValueError, match=says):
        serve(save_models(tmp_path), port=0, **options)


@pytest.mark.parametrize(
    ("address", "options", "says"),
    [
        ("http://example.org", {"token": TOKEN}, "token: it could be read on the way .*: expected https"),
        ("http://127.0.0.1", {"ca": AUTHORITY}, "address 'http://127.0.0.1' is without TLS: expected https"),
        ("https://127.0.0.1", {"ca": "no.pem"}, "ca = 'no.pem': .*expected certificates in PEM format"),
        ("https://127.0.0.1", {"certificate": FILES / "server.key"}, "expected a certificate and its key, PEM"),
        ("https://127.0.0.1", {"token": "a b"}, "token: expected printable ASCII without spaces"),
        ("http://127.0.0.1", {"headers": {"X": "a\nb"}}, "headers: 'X' cannot be sent"),
        ("http://127.0.0.1", {"retries": -1}, "retries = -1: expected an int, at least 0"),
        ("http://127.0.0.1", {"proxy": "ftp://here"}, "proxy: expected http://host:port"),
        ("http://127.0.0.1:99999", {}, "address 'http://127.0.0.1:99999': expected http://host:port"),
    ],
)
def test_a_client_refuses_what_it_cannot_use(address: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        RemoteClient(address, **options)
    assert TOKEN not in str(caught.value)


def test_headers_and_the_token_go_with_each_request() -> None:
    access = Access(token=TOKEN, headers={"X-Team": "us"})
    assert access.request_headers() == {"X-Team": "us", "Authorization": f"Bearer {TOKEN}"}
    assert TOKEN not in repr(access)


@pytest.mark.parametrize(
    ("host", "tls", "tokens", "says"),
    [
        ("0.0.0.0", None, False, "0.0.0.0 can be reached from other machines, and the server has no TLS and no token"),
        ("0.0.0.0", "tls", False, "the server has no token"),
        ("::", None, True, "the server has no TLS:"),
        ("0.0.0.0", "tls", True, None),
        ("127.0.0.1", None, False, None),
        ("localhost", None, False, None),
    ],
)
def test_a_server_that_others_can_reach_warns(host: str, tls: Any, tokens: bool, says: str | None) -> None:
    from reference.service.listener import warn_of_exposure

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_exposure(host, has_tls=bool(tls), has_tokens=tokens)
    said = [str(warning.message) for warning in caught]
    assert len(said) == (says is not None)
    assert says is None or says in said[0]


def test_encryption_that_hides_nothing_is_named() -> None:
    assert why_insecure(EXACT) is None
    assert why_insecure(TOY) == "the parameter set toy-insecure is not secure"
    mine = EncryptionParameters("mine", 1024, bits=27, bits_in=60, bits_out=45, levels=5, base_log=7, secure=True)
    assert why_insecure(mine) == (
        "the parameter set mine is called secure, but its polynomials have 1024 coefficients: its noise needs 2048"
    )


def test_every_limit_is_an_option_with_its_default() -> None:
    from conformance.commands.serve import LIMITS, size_of

    defaults = vars(Limits())
    assert set(LIMITS) == set(defaults)
    for name, (default, _) in LIMITS.items():
        known = defaults[name]
        assert (None if default == "none" else float(size_of(default))) == (None if known is None else float(known)), (
            name
        )


def test_requests_that_have_ended_do_not_count() -> None:
    from starlette.exceptions import HTTPException

    quotas = Quotas(Limits(client_requests=1))
    for _ in range(3):
        with quotas.request("one"):
            assert quotas.requests == {"one": 1}
            with pytest.raises(HTTPException) as refused, quotas.request("one"):
                pass
            assert refused.value.detail.startswith("1 requests of one are here")
    assert not quotas.requests
