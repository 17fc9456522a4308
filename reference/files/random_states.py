"""The random states of a process: how to take, check and restore them."""

import random
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

RANDOM = ("python", "numpy", "torch", "cuda")


def check_keys(what: str, found: Any, expected: Iterable[str]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{what}: got a {type(found).__name__}, expected a dict")
    extra, missing = ([str(key) for key in keys] for keys in (set(found) - set(expected), set(expected) - set(found)))
    if extra or missing:
        raise ValueError(f"{what}: unexpected {sorted(extra)}, missing {sorted(missing)}")


def random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
    }


def check_random(saved: Any) -> None:
    """Try the random states on new generators."""
    check_keys("the random states", saved, RANDOM)
    for name in RANDOM:
        try:
            _try_random(name, saved[name])
        except Exception as error:
            raise ValueError(f"its random state of {name} cannot be restored: {error}") from error


def _try_random(name: str, state: Any) -> None:
    if name == "python":
        random.Random().setstate(state)
    elif name == "numpy":
        np.random.RandomState().set_state(_numpy_state(state))
        if not 0 <= state[2] <= len(state[1]):  # set_state does not check this
            raise ValueError(f"its position is {state[2]}")
    elif name == "torch":
        torch.Generator().set_state(state)
    elif state is not None and len(state) == torch.cuda.device_count():
        for device, own in enumerate(state):
            torch.Generator(device=f"cuda:{device}").set_state(own)


def _numpy_state(saved: list[Any]) -> tuple[Any, ...]:
    kind, keys, position, has_gauss, cached = saved
    return kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached


def restore_random(saved: dict[str, Any]) -> None:
    random.setstate(saved["python"])
    np.random.set_state(_numpy_state(saved["numpy"]))
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] is None:
        return
    if len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    else:
        warnings.warn(
            f"the states of {len(saved['cuda'])} CUDA generators are not restored: there are "
            f"{torch.cuda.device_count()} devices here",
            stacklevel=3,
        )
