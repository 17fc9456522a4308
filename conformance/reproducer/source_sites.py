"""Where in the source of the suite a running function stands: the place of the call that it makes."""

from __future__ import annotations

from functools import lru_cache
from types import CodeType, FrameType

Site = tuple[str, int | None, int | None, int | None, int | None]  # module, first and last line, first and last column


def site_of(frame: FrameType) -> Site:
    """The place of the call that a frame makes at present."""
    return (frame.f_globals["__name__"], *_positions(frame.f_code)[frame.f_lasti // 2])


@lru_cache(maxsize=1024)
def _positions(code: CodeType) -> tuple[tuple[int | None, int | None, int | None, int | None], ...]:
    return tuple(code.co_positions())
