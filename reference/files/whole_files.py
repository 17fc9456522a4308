"""Files that are replaced whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder so that all are new or, if anything fails, all are as they were.

    Each is written under a temporary name, flushed to the disk and renamed; those renamed already go back if
    a later rename fails. Only a process that ends between two renames leaves old beside new.

    Args:
        folder: made if it is not there.
        files: contents by name, in the order in which they are renamed.
    Raises:
        OSError: of whatever failed.
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
    """The contents under a temporary name beside the final one, on the disk."""
    path = _temporary(folder, name, temporary)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def _kept(folder: Path, name: str, temporary: contextlib.ExitStack) -> Path | None:
    """A second name of what is to be replaced, or a copy where there are no links, or None where there is nothing."""
    if not os.path.lexists(folder / name):
        return None
    path = _temporary(folder, name, temporary)
    try:
        os.link(folder / name, path, follow_symlinks=False)
    except OSError:  # exFAT and many file systems of FUSE have none
        shutil.copy2(folder / name, path, follow_symlinks=False)
    return path


def _temporary(folder: Path, name: str, temporary: contextlib.ExitStack) -> Path:
    path = folder / f".{name}.{secrets.token_hex(8)}"
    temporary.callback(path.unlink, missing_ok=True)
    return path


def _flush(folder: Path) -> None:
    """Make the renames last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
