"""The options of an adapter: data has no faster variant, so this is the reference's."""

from reference.config import PeftConfig

__all__ = ["PeftConfig"]
