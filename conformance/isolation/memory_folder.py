"""A folder in memory for short-lived files: a write to disk may wait until the disk has confirmed it."""

from __future__ import annotations

import os

SHARED_MEMORY = "/dev/shm"
LEAST = 2**26  # free bytes; in some containers the folder has almost no space


def in_memory() -> str | None:
    """A folder in memory for `tempfile`; None, which means tempfile's default, if no such folder has enough space."""
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    usable = os.access(SHARED_MEMORY, os.W_OK | os.X_OK) and room.f_bavail * room.f_frsize >= LEAST
    return SHARED_MEMORY if usable else None
