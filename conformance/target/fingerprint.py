"""The fingerprint of a target's source: a run is resumed, and shards are merged, only if their fingerprints agree."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")


def fingerprint(target: str) -> str:
    """A digest of the imported source files that belong to an imported target; empty if there are none.

    These are the modules in the folder of the target's package, or of its module, without this suite's. Packages
    installed elsewhere are identified by their version. The location of the folder does not matter.
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
        if not set(INSTALLED) & set(name.parts):  # skip a virtual environment beside the target
            digest.update(f"{name.as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if isinstance(file, str) and Path(file).is_file() else None


def _of_the_suite(module: str) -> bool:
    # the command and the plugin import different modules of the suite
    suite, _, rest = module.partition(".")
    return suite == __package__.partition(".")[0] and rest.partition(".")[0] != "targets"
