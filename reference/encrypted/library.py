"""concrete-ml-extensions: imported when first needed, and used in the one process in which it works."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .envelope import EncryptionError


def import_library() -> Any:
    """The library.

    Raises:
        ModuleNotFoundError: if it is not installed, with the command that installs it.
    """
    try:
        import concrete_ml_extensions
    except ModuleNotFoundError as error:
        if error.name != "concrete_ml_extensions":
            raise
        raise ModuleNotFoundError(
            "encryption needs concrete-ml-extensions: pip install 'loraspec[fhe]'", name=error.name
        ) from None
    return concrete_ml_extensions


def check_use(threads: int | None) -> None:
    """Refuse what `use` would refuse, without using the library."""
    import_library()
    _first_use.check(threads)


def use(threads: int | None) -> Any:
    """The library, about to be used with so many threads; None for as many as there are.

    Raises:
        EncryptionError: in a process forked from one that has used it, or if it has other threads.
    """
    _first_use.check(threads)
    library = import_library()
    if _first_use.pid is None:
        if threads is not None:
            os.environ["RAYON_NUM_THREADS"] = str(threads)
        _first_use.pid, _first_use.threads = os.getpid(), os.environ.get("RAYON_NUM_THREADS")
    return library


@contextmanager
def panics_as_errors(doing: str) -> Iterator[None]:
    """Rust's panics arrive as a BaseException, which no handler of errors would see."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise EncryptionError(f"{doing}: concrete-ml-extensions stopped at {str(error)[:200]!r}") from None


class _FirstUse:
    """What the library was started with in this process, and in which."""

    pid: int | None = None
    threads: str | None = None

    def check(self, threads: int | None) -> None:
        if self.pid is None:
            return
        if self.pid != os.getpid():
            raise EncryptionError(
                f"this process was forked from {self.pid}, which had used concrete-ml-extensions: its threads are not "
                'here and it would hang; start processes with multiprocessing.get_context("spawn")'
            )
        if threads is not None and str(threads) != self.threads:
            raise EncryptionError(
                f"threads = {threads}, but concrete-ml-extensions was started with {self.threads or 'all cores'} "
                "in this process, and cannot be started again: say so before its first use"
            )


_first_use = _FirstUse()
