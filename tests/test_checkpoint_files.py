"""Files that are replaced atomically, and the symbolic links that may point to them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from reference.files.tensor_file import file_in
from reference.files.whole_files import replace_files
from tests.test_checkpoint import files


def no_link(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, "no links here")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_earlier_renames_are_undone_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, links: bool
) -> None:
    """On a file system without hard links the old file is copied instead, and is restored too."""
    old = {"a": b"1", "b": b"2"}
    new = {"a": b"3", "new": b"4", "b": b"5"}
    replace_files(tmp_path, old)
    assert files(tmp_path) == old
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    calls = []
    rename = os.replace

    def replace(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == failing + 1:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="no"):
        replace_files(tmp_path, new)
    assert len(calls) > failing
    assert files(tmp_path) == old
    monkeypatch.setattr(os, "replace", rename)
    replace_files(tmp_path, new)
    assert files(tmp_path) == new


def test_files_are_synced_to_disk_before_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (events.append(name), real(*args))[1])
    replace_files(tmp_path, {"a": b"1", "b": b"2"})
    assert events == ["fsync", "fsync", "replace", "replace", "fsync"]


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        replace_files(tmp_path, {"a": b"1"})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_links_may_only_lead_to_blobs_of_their_own_repository(tmp_path: Path) -> None:
    """Hugging Face's cache has such links, and its repositories also keep adapters in subfolders."""
    for repository in ("models--a", "models--b"):
        blobs = tmp_path / repository / "blobs"
        blobs.mkdir(parents=True)
        (blobs / "0a").write_bytes(b"1")
    own, other = (tmp_path / name / "blobs" / "0a" for name in ("models--a", "models--b"))
    for depth, parts in enumerate(((), ("adapter",), ("adapter", "last"), ("snapshots-of", "mine"))):
        folder = tmp_path.joinpath("models--a", "snapshots", "main", *parts)
        folder.mkdir(parents=True)
        for name, target in {"own": own, "other": other}.items():
            (folder / name).symlink_to(target)
        assert file_in(folder, "own") == own.resolve(), depth
        with pytest.raises(ValueError, match="other leads out of its folder"):
            file_in(folder, "other")


def test_only_snapshots_may_link_to_blobs(tmp_path: Path) -> None:
    for inner in ("blobs", "main/adapter", "snapshots"):
        (tmp_path / inner).mkdir(parents=True)
    (tmp_path / "blobs" / "0a").write_bytes(b"1")
    for folder in (tmp_path / "main" / "adapter", tmp_path / "snapshots"):
        (folder / "linked").symlink_to(tmp_path / "blobs" / "0a")
        with pytest.raises(ValueError, match="linked leads out of its folder"):
            file_in(folder, "linked")
