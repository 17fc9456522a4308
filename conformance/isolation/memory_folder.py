"""Where files go that are read back at once: memory, where there is a folder for it, as a disk waits to be sure."""

from __future__ import annotations

import os

SHARED_MEMORY = "/dev/shm"
LEAST = 2**26  # free bytes; some containers give it next to nothing


def in_memory() -> str | None:
    """A folder in memory, for `tempfile`; None, which is its own choice, where there is none with room."""
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    usable = os.access(SHARED_MEMORY, os.W_OK | os.X_OK) and room.f_bavail * room.f_frsize >= LEAST
    return SHARED_MEMORY if usable else None
