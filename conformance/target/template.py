"""The target module that `loraspec init` writes: plain PyTorch, in which the user replaces one line."""

from __future__ import annotations

from pathlib import Path

from conformance.errors import UsageError

TEMPLATE = '''"""Target of loraspec: put your implementation in, then `loraspec run {name} --group linear`."""

import torch.nn.functional as F

CONFORMANCE = {{"name": "{name}", "dtypes": ("float64", "float32", "bfloat16", "float16")}}


def lora_linear(x, weight, bias, lora_A, lora_B, scale, *, dropout=0.0, dropout_position="post", training=False):
    """y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ, lora_A [r, K], lora_B [N, r]; see `loraspec explain LIN-FWD`."""
    pre, post = (dropout, 0.0) if dropout_position == "pre" else (0.0, dropout)
    dropped = F.dropout(x.to(lora_A.dtype), pre, training)
    update = F.linear(F.linear(dropped, lora_A) * scale, lora_B)  # <- your kernel here
    update = F.dropout(update, post, training)
    if weight is None:
        return update.to(x.dtype)
    base = F.linear(x, weight, bias)
    return base + update.to(base.dtype)
'''


def check(path: Path) -> None:
    """Check that a module can be written there.

    Raises:
        UsageError: if the name is not a module file's, or the file exists.
    """
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UsageError(f"{str(path)!r} is not a module file: expected a name like my_target.py")
    if path.exists():
        raise UsageError(f"{str(path)!r} exists: it is not overwritten")


def write(path: Path, text: str) -> None:
    """Write a module; a file that exists stays.

    Raises:
        UsageError: if the file exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{str(path)!r} exists: it is not overwritten") from None
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
