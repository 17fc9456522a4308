"""Known-bad twins of atomic save: a save destroys the older files, or leaves temporary ones behind."""

from __future__ import annotations

import contextlib

from conformance.clauses.checkpoint.peft_files import CONFIG, REST, TENSORS
from tests.baselines.checkpoint import Right
from tests.baselines.checkpoint import checkpoint_breaks as breaks


class WritesInPlace(Right):
    """The save writes to the final files without temporary ones."""

    def write(self, folder, files):
        for name, data in files.items():
            (folder / name).write_bytes(data)


breaks("CKP-READER", says="in place: a reader")(WritesInPlace)


@breaks("CKP-WHOLE", says="is no longer what it was before a save that failed")
class TruncatesFirst(WritesInPlace):
    pass


@breaks("CKP-WHOLE", says="is no longer what it was before a save that failed")
class ReplacesTheConfigFirst(Right):
    def write(self, folder, files):
        for name in (CONFIG, REST, TENSORS):
            super().write(folder, {name: files[name]})


@breaks("CKP-WHOLE", says="where there was nothing")
class LeavesPartsInANewFolder(Right):
    def write(self, folder, files):
        if (folder / TENSORS).exists():
            super().write(folder, files)
            return
        for name, data in files.items():
            (folder / name).write_bytes(data)


@breaks("CKP-WHOLE", says="raised None: expected an error")
class SwallowsTheError(Right):
    def write(self, folder, files):
        with contextlib.suppress(OSError):
            super().write(folder, files)


@breaks("CKP-WHOLE", says="is no safetensors file")
class SwallowsTheErrorInPlace(WritesInPlace):
    def write(self, folder, files):
        with contextlib.suppress(OSError):
            super().write(folder, files)


@breaks("CKP-LEFTOVERS", says="a save that failed left")
class LeavesTemporaryFiles(Right):
    def write(self, folder, files):
        (folder / f".{TENSORS}.new").write_bytes(files[TENSORS])
        super().write(folder, files)


@breaks("CKP-LEFTOVERS", says="a save that was done left")
class KeepsABackup(Right):
    def write(self, folder, files):
        for file in list(folder.iterdir()):
            (folder / f"{file.name}.bak").write_bytes(file.read_bytes())
        super().write(folder, files)
