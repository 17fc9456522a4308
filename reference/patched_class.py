"""The class of a module that has an adapter: derived from the adapter's class and from the module's own."""

import functools
from typing import Any

from torch import nn


@functools.cache  # one class for all layers of a kind
def patched_class(original: Any, lora: Any) -> Any:
    """The class of an adapted `original`: `lora` itself for nn.Linear, else a class derived from `lora` and `original`.

    `lora` is the first base, so that its ``super().forward`` is the forward of `original`.
    """
    if original is nn.Linear:
        return lora
    methods = {"__reduce_ex__": _reduce, "original_class": original}
    return type(f"{lora.__name__}Of{original.__name__}", (lora, original), methods)


def _reduce(self: Any, _protocol: object) -> tuple[Any, ...]:
    """Pickle the two bases, because pickle cannot find the derived class in a module."""
    lora, original = type(self).__bases__
    return _new, (original, lora), self.__getstate__()


def _new(original: Any, lora: Any) -> Any:
    cls = patched_class(original, lora)
    return cls.__new__(cls)
