"""TLS at a server: the files that it needs, checked before it listens."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ServerTLS:
    """The files by which a server proves its name, and by which it knows its clients.

    Attributes:
        certificate: the server's certificate and those between it and its authority, PEM.
        private_key: its key, PEM without a password.
        client_ca: certificates of the authorities whose clients are admitted, PEM; None admits every client.
    Raises:
        ValueError: naming a file that is missing or cannot be used.
    """

    certificate: str | Path
    private_key: str | Path
    client_ca: str | Path | None = None

    def __post_init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files: list[Any] = [self.certificate, self.private_key, self.client_ca]
        for file in files:
            if file is not None and not Path(file).is_file():
                raise ValueError(f"{file} is no file: expected one in PEM format")
        try:
            context.load_cert_chain(self.certificate, self.private_key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(
                f"{self.certificate} and {self.private_key} cannot be used ({error}): expected a certificate and its "
                f"key, without a password, in PEM format"
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise ValueError(f"{self.client_ca} cannot be used ({error}): expected certificates in PEM") from error

    def options(self) -> dict[str, Any]:
        """The options of uvicorn."""
        known: dict[str, Any] = {"ssl_certfile": str(self.certificate), "ssl_keyfile": str(self.private_key)}
        if self.client_ca is not None:
            known |= {"ssl_ca_certs": str(self.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return known


def _no_password() -> str:
    raise ValueError("the key has a password")
