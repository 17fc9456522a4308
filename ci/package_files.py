"""Build the sdist, and the wheel from it, and compare the wheel's files with the repository's."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGES = ("conformance", "reference", "optimized", "loraspec")
FRONT = "conformance/front/"  # the folder of the package `loraspec`, which the wheel has at its top


def main(root: Path, into: Path) -> None:
    """Build into a folder; exit with a message if the wheel lacks files or has additional ones."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(into), str(root)], check=True, stdout=subprocess.DEVNULL
    )
    (wheel,) = into.glob("*.whl")
    built = {name for name in zipfile.ZipFile(wheel).namelist() if name.partition("/")[0] in PACKAGES}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES[:3]],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    tracked = {name.removeprefix(FRONT) for name in listed.stdout.splitlines() if (root / name).exists()}
    if built != tracked:
        missing, more = sorted(tracked - built), sorted(built - tracked)
        sys.exit(f"{wheel.name} lacks {', '.join(missing) or 'no file'}; additional files: {', '.join(more) or 'none'}")
    sys.stdout.write(f"{wheel.name} has all {len(built)} files\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
