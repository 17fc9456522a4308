"""How a client reaches a server: TLS, a certificate of its own, a token, a proxy, and further headers."""

import ipaddress
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Access:
    """See `client.RemoteClient`, whose arguments of these names they are."""

    token: str | None = field(default=None, repr=False)
    ca: str | Path | None = None
    certificate: str | Path | tuple[str | Path, str | Path] | None = None
    proxy: str | None = field(default=None, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def has_secrets(self) -> bool:
        """Whether it holds what a file must not hold."""
        return bool(self.token or self.headers or self.certificate or self.proxy)

    def check(self, address: str) -> None:
        """Refuse what cannot be sent, and a token that anyone on the way to the address could read.

        Raises:
            ValueError: naming the argument, without showing a secret.
        """
        secure = urlsplit(address).scheme == "https"
        if self.token is not None and not (self.token and all(33 <= ord(letter) <= 126 for letter in self.token)):
            raise ValueError("token: expected printable ASCII without spaces")
        for name, value in self.headers.items():
            if not name or not value.isprintable() or not name.isascii() or not value.isascii():
                raise ValueError(f"headers: {name!r} cannot be sent: expected printable ASCII")
        if not secure and (self.ca is not None or self.certificate is not None):
            raise ValueError(f"address {address.partition('@')[2] or address!r} is without TLS: expected https://…")
        if not secure and self.token is not None and not is_local(urlsplit(address).hostname or ""):
            raise ValueError("token: it could be read on the way to an address without TLS: expected https://…")

    def request_headers(self) -> dict[str, str]:
        """The headers of each request."""
        return self.headers | ({"Authorization": f"Bearer {self.token}"} if self.token else {})

    def transport(self, httpx: Any) -> Any:
        """An httpx transport.

        Raises:
            ValueError: naming a file that cannot be used, or the proxy.
        """
        # Keep-alive packets detect a dead host minutes before the time-out of a long evaluation.
        alive = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, name):
                alive.append((socket.IPPROTO_TCP, getattr(socket, name), value))
        options: dict[str, Any] = {"trust_env": False, "limits": httpx.Limits(), "verify": self._context(httpx)}
        if self.proxy is None:
            return httpx.HTTPTransport(socket_options=alive, **options)
        try:
            return httpx.HTTPTransport(proxy=self.proxy, **options)
        except (ValueError, httpx.InvalidURL) as error:
            raise ValueError(f"proxy: expected http://host:port ({type(error).__name__})") from None

    def _context(self, httpx: Any) -> ssl.SSLContext:
        try:
            context: ssl.SSLContext = (
                httpx.create_ssl_context(trust_env=False)
                if self.ca is None
                else ssl.create_default_context(cafile=str(self.ca))
            )
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"ca = {str(self.ca)!r}: {error}: expected certificates in PEM format") from error
        if self.certificate is not None:
            files = self.certificate if isinstance(self.certificate, tuple) else (self.certificate, None)
            try:
                context.load_cert_chain(*files)
            except (OSError, ssl.SSLError) as error:
                raise ValueError(
                    f"certificate = {str(self.certificate)!r}: {error}: expected a certificate and its key, PEM"
                ) from error
        return context


def check_address(address: str) -> None:
    """Refuse an address that is not ``http://host:port`` or ``https://host:port``, without showing its password.

    Raises:
        ValueError: naming the address.
    """
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
        _ = parts.port
    except (ValueError, AttributeError, TypeError):
        good = False
    if not good:
        shown = without_password(address) if isinstance(address, str) else address
        raise ValueError(f"address {shown!r}: expected http://host:port")


def without_password(address: str) -> str:
    """The address without the name and the password of a user."""
    start, separator, rest = address.partition("://")
    before_path = rest.partition("/")[0]
    return start + separator + rest[before_path.rfind("@") + 1 :]


def is_local(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
