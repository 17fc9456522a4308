"""A split model on disk: writing and reading it has no faster variant, so this is the reference's."""

from reference.service.deployment import Clearing, check_name, load_client, load_server, save

__all__ = ["Clearing", "check_name", "load_client", "load_server", "save"]
