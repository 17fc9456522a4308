"""Client and server: what they take is the encryption's time, so these are the reference's."""

from reference.service.client import Limits, RemoteClient, RemoteError, serve

__all__ = ["Limits", "RemoteClient", "RemoteError", "serve"]
