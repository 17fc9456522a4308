"""`python -m tests.campaigns.noise_law`: the errors of encrypted products compared with the noise law, and the cost."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from reference.encrypted.encryption import ConcreteBackend, Keys
from reference.encrypted.noise import EXACT, FAST, PARAMETER_SETS, EncryptionParameters, noise_std, wrap

T = TypeVar("T")
ALPHA = 1e-3
"""The false-alarm rate of each test; it is three times that of a verdict. Kolmogorov's test ignores that keys differ,
which changes its distance by a tenth of the allowed distance."""

TOY_FAST = dataclasses.replace(FAST, name="fast at size 256", polynomial_size=256, secure=False)


def errors(parameters: EncryptionParameters, weight: Tensor, rows: int, keys: int, seed: int = 0) -> Tensor:
    """Return decrypted results minus exact products, int64 [rows, N], for random 8-bit inputs.

    The rows are divided among several key pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    backend = ConcreteBackend(parameters)
    parts = []
    for index in range(keys):
        pair = new_keys(backend)
        mine = rows // keys + (index < rows % keys)
        q = torch.randint(0, 256, (mine, weight.shape[1]), generator=generator)
        result = backend.evaluate(backend.encrypt(q, pair), weight, pair.evaluation)
        parts.append(wrap(backend.decrypt(result, mine, len(weight), pair) - q @ weight.T, parameters.bits))
    return torch.cat(parts)


def new_keys(backend: ConcreteBackend) -> Keys:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning that toy parameters are not secure
        return backend.keygen()


def variance_score(found: Tensor, law: float, spread: float) -> float:
    """Return how many standard deviations the mean square error lies from the law's variance.

    Args:
        spread: relative standard deviation, over keys, of one key's variance, divided by √keys.
    """
    ratio = float(found.double().square().mean()) / law**2
    return (ratio - 1) / math.hypot(math.sqrt(2 / len(found)), spread)


def kolmogorov(found: Tensor, law: float, seed: int = 0) -> float:
    """Return the p-value of Kolmogorov's test of rounded errors against a Gaussian with standard deviation `law`.

    Each integer is replaced by a random point of its rounding interval; under the law the result is exactly uniform.
    """
    generator = torch.Generator().manual_seed(seed)
    inside = torch.rand(found.shape, dtype=torch.float64, generator=generator) - 0.5
    uniform = torch.special.ndtr((found + inside) / law).sort().values
    n = len(uniform)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum(steps[1:] - uniform, uniform - steps[:-1]).max())
    scaled = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance  # Stephens (1970)
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms))) if scaled > 0.3 else 1.0


def two_sided(score: float) -> float:
    return math.erfc(abs(score) / math.sqrt(2))


def judge_law(parameters: EncryptionParameters, rows: int, keys: int, features: int = 64) -> bool:
    """Measure rows of one column, print each test, and return whether the law holds."""
    weight = torch.randint(-128, 128, (1, features), generator=torch.Generator().manual_seed(1))
    law = float(noise_std(parameters, weight)[0])
    start = time.process_time()
    found = errors(parameters, weight, rows, keys)[:, 0]
    mean = float(found.double().mean())
    tests = {
        "mean": two_sided(mean * math.sqrt(rows) / law),
        "variance": two_sided(variance_score(found, law, 1 / math.sqrt(parameters.polynomial_size * keys))),
        "distribution (Kolmogorov)": kolmogorov(found, law),
    }
    measured = float(found.double().square().mean().sqrt())
    print(f"{parameters.name}: {rows} one-column rows under {keys} keys, {time.process_time() - start:.0f} CPU-s")
    print(f"  σ {measured:.3f}, law {law:.3f}, ratio {measured / law:.4f}; mean {mean:+.3f}; "
          f"largest {int(found.abs().max())}")  # fmt: skip
    for name, p in tests.items():
        print(f"  {name}: p = {p:.3g}{'' if p >= ALPHA else '  REFUSED'}")
    held = all(p >= ALPHA for p in tests.values())
    print(
        f"  the law {'holds' if held else 'does NOT hold'} (false-alarm rate at most {len(tests) * ALPHA})", flush=True
    )
    return held


def print_correlation(rows: int) -> None:
    """Print the correlation of errors in one row; at a distance of d columns, ½ - d/P is expected."""
    found = errors(TOY_FAST, torch.ones(193, 4, dtype=torch.int64), rows, 4).double()
    found /= found.square().mean().sqrt()
    line = []
    for distance in (1, 64, 128, 192):
        products = (found[:, distance:] * found[:, :-distance]).mean()
        line.append(f"{distance}: {float(products):+.2f} ({0.5 - distance / 256:+.2f})")
    print(f"correlation of columns by distance, of 256 (expected): {'   '.join(line)}", flush=True)


def print_costs(parameters: EncryptionParameters) -> None:
    """Print times in CPU seconds, which other load on the machine increases, and sizes."""
    backend = ConcreteBackend(parameters)
    keys, keygen = timed(lambda: new_keys(backend))
    print(f"{parameters.name}: keygen {keygen:.1f} s, evaluation key {len(keys.evaluation)} bytes, "
          f"secret key {len(keys.secret)} bytes")  # fmt: skip
    columns = 8 if parameters.secure else 256
    for features in (512, 2048, 8192):
        q, weight = torch.ones(2, features, dtype=torch.int64), torch.ones(columns, features, dtype=torch.int64)
        ciphertext, encryption = timed(lambda q=q: backend.encrypt(q, keys))
        backend.evaluate(ciphertext, weight[:1], keys.evaluation)  # the first call prepares the key
        evaluate = lambda c=ciphertext, w=weight: backend.evaluate(c, w, keys.evaluation)  # noqa: E731
        result, evaluation = min((timed(evaluate) for _ in range(3)), key=lambda pair: pair[1])
        _, decryption = timed(lambda r=result: backend.decrypt(r, 2, columns, keys))
        print(
            f"  K {features:5d}: encrypt {encryption * 500:.1f} ms and {len(ciphertext) // 2} bytes per row, evaluate "
            f"{evaluation * 500 / columns:.2f} ms per row·column, {len(result) // 2} bytes per row of {columns}, "
            f"decrypt {decryption * 500:.1f} ms per row",
            flush=True,
        )


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def main() -> int:
    """Print the measurements; return 1 if the law does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.noise_law", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=4)
    options = parser.parse_args()
    new_keys(ConcreteBackend(TOY_FAST, threads=1))  # starts the library with one thread: times are those of one core
    # A short key has few ones, so more keys are needed until their average agrees with the law.
    held = [judge_law(TOY_FAST, options.rows, 16 * options.keys), judge_law(FAST, options.rows, options.keys)]
    found = errors(EXACT, torch.full((2, 512), 127), 8, 1)
    print(f"exact: {int(found.count_nonzero())} of {found.numel()} results are wrong")
    print_correlation(200)
    for parameters in PARAMETER_SETS.values():
        print_costs(parameters)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
