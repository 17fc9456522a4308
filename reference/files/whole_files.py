"""Atomic replacement of files."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder so that either all are new or, after an error, all are unchanged.

    Each file is written under a temporary name, flushed to the disk and renamed. If a rename fails, the earlier ones
    are undone. Old and new files are mixed only if the process is killed between two renames.

    Args:
        folder: created if missing.
        files: contents by name, in the order in which they are renamed.
    Raises:
        OSError: if writing or renaming fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as temporary:
        staged = {name: _staged(folder, name, data, temporary) for name, data in files.items()}
        kept = {name: _kept(folder, name, temporary) for name in files}
        done: list[str] = []
        try:
            for name, path in staged.items():
                os.replace(path, folder / name)
                done.append(name)
        except BaseException:
            for name in done:
                old = kept[name]
                if old is None:
                    (folder / name).unlink()
                else:
                    os.replace(old, folder / name)
            raise
    _flush(folder)


def _staged(folder: Path, name: str, data: bytes, temporary: contextlib.ExitStack) -> Path:
    """Write the contents to a temporary file in the same folder, and flush it to the disk."""
    path = _temporary(folder, name, temporary)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def _kept(folder: Path, name: str, temporary: contextlib.ExitStack) -> Path | None:
    """A hard link to the file to replace, or a copy on file systems without links; None if there is no such file."""
    if not os.path.lexists(folder / name):
        return None
    path = _temporary(folder, name, temporary)
    try:
        os.link(folder / name, path, follow_symlinks=False)
    except OSError:  # exFAT and many FUSE file systems have no hard links
        shutil.copy2(folder / name, path, follow_symlinks=False)
    return path


def _temporary(folder: Path, name: str, temporary: contextlib.ExitStack) -> Path:
    path = folder / f".{name}.{secrets.token_hex(8)}"
    temporary.callback(path.unlink, missing_ok=True)
    return path


def _flush(folder: Path) -> None:
    """Flush the renames to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
