"""Client and server: what they take is the encryption's time, so these are the reference's."""

from reference.remote import Limits, RemoteClient, RemoteError, serve

__all__ = ["Limits", "RemoteClient", "RemoteError", "serve"]
