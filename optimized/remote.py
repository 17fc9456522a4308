"""Client and server: what they take is the encryption's time, so these are the reference's."""

from reference.service.client import RemoteClient, RemoteError
from reference.service.protocol import Limits
from reference.service.server import serve

__all__ = ["Limits", "RemoteClient", "RemoteError", "serve"]
