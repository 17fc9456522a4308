"""Changes of modules that are undone if an error cuts them short."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def undone_on_error(modules: Iterable[nn.Module], parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """A region after which, if it raises, modules and parameters are as before.

    Args:
        modules: their classes, attributes, parameters, buffers, children, hooks and modes are restored, the values of
            tensors are not.
        parameters: their `requires_grad` is restored.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in parameters]
    before = [(module, type(module), dict(vars(module)), _tables(module)) for module in modules]
    try:
        yield
    except BaseException:
        for module, kind, attributes, tables in before:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            for table, entries in tables:
                table.clear()
                table.update(entries)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise


def _tables(module: nn.Module) -> list[tuple[dict[object, object], dict[object, object]]]:
    """Each dict of a module with a copy; the handle of a hook knows the dict itself, so that it must stay."""
    return [(value, dict(value)) for value in vars(module).values() if isinstance(value, dict)]
