"""A wrapper of concrete-ml-extensions, which is imported when first needed and used in a single process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .envelope import EncryptionError


def import_library() -> Any:
    """Import the library.

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
    """Raise the errors of `use`, without starting the library."""
    import_library()
    _first_use.check(threads)


def use(threads: int | None) -> Any:
    """Start the library with a number of threads; None keeps the number it has, or uses all cores.

    Raises:
        EncryptionError: in a process forked after the library was used, or if it runs with another number of threads.
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
    """Convert a Rust panic, which arrives as a BaseException, to an `EncryptionError`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise EncryptionError(f"{doing}: concrete-ml-extensions stopped at {str(error)[:200]!r}") from None


class _FirstUse:
    """The process and the number of threads with which the library was started."""

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
                "in this process, and cannot be started again: choose before its first use"
            )


_first_use = _FirstUse()
