"""The fingerprint of a target's source: what a cut off run or a shard must have in common with its others."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")


def fingerprint(target: str) -> str:
    """A digest of the files, as imported so far, that belong to an imported target; empty where it has none.

    These are the modules of the target's own package, or beside a target that is a single module, this suite's
    excepted; what is installed elsewhere is known by its version. Where they lie on the disk does not count.
    """
    module = target.partition(":")[0]
    file = _file(module.partition(".")[0]) or _file(module)
    if file is None:
        return ""
    folder = file.parent
    modules = [module] if folder.name in INSTALLED else [name for name in list(sys.modules) if not _of_the_suite(name)]
    files = {path for path in map(_file, modules) if path is not None and path.is_relative_to(folder)}
    found = {path.relative_to(folder): path.read_bytes() for path in files}
    digest = hashlib.sha256()
    for name, content in sorted(found.items()):
        if not set(INSTALLED) & set(name.parts):  # a virtual environment beside the target
            digest.update(f"{name.as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if isinstance(file, str) and Path(file).is_file() else None


def _of_the_suite(module: str) -> bool:
    # which of these are imported differs between the command and the plugin
    suite, _, rest = module.partition(".")
    return suite == __package__.partition(".")[0] and rest.partition(".")[0] != "targets"
