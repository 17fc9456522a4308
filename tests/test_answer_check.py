"""The check of a server's answers: every wrong row is found, by integers modulo a prime, or within the noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference import EncryptionError
from reference.encrypted.answer_check import PRIME, SIGNS, AnswerCheck, products_modulo_prime, weight_digest


def operands(m: int = 5, k: int = 33, n: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m + 7 * k + 31 * n)
    q = torch.randint(0, 256, (m, k), generator=generator)
    return q, torch.randint(-128, 128, (n, k), generator=generator)


def exact(weight: Tensor) -> AnswerCheck:
    return AnswerCheck.of(weight, torch.zeros(len(weight)))


@pytest.mark.parametrize("bits", [1, 26, 40, 48, 62])
def test_products_modulo_the_prime_are_exact(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    values = torch.randint(-(2**bits), 2**bits, (4, 50), generator=generator)
    values[0], values[1] = 2**bits - 1, -(2**bits)
    vector = torch.randint(0, PRIME, (50,), generator=generator)
    vector[:2] = PRIME - 1
    expected = [sum(int(a) * int(b) for a, b in zip(row, vector, strict=True)) % PRIME for row in values]
    assert products_modulo_prime(values, vector).tolist() == expected
    assert products_modulo_prime(values[:0], vector).tolist() == []


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (5, 33, 7), (64, 5, 300)])
def test_right_answers_are_accepted_and_one_wrong_element_is_found(m: int, k: int, n: int) -> None:
    q, weight = operands(m, k, n)
    check, y = exact(weight), q @ weight.T
    check.verify(q, y)
    for off in (1, -1, 2**25):
        wrong = y.clone()
        wrong[m // 2, n - 1] += off
        with pytest.raises(EncryptionError, match=rf"wrong in 1 of {m} rows, first in row {m // 2}: expected the prod"):
            check.verify(q, wrong)


def test_exchanged_rows_other_inputs_and_other_weights_are_found() -> None:
    q, weight = operands()
    check, y = exact(weight), q @ weight.T
    with pytest.raises(EncryptionError, match="wrong in 2 of 5 rows, first in row 1"):
        check.verify(q, y[[0, 2, 1, 3, 4]])
    with pytest.raises(EncryptionError, match="wrong in 5 of 5 rows, first in row 0"):
        check.verify(q, (q + 1) @ weight.T)
    changed = weight.clone()
    changed[3, 3] += 1
    with pytest.raises(EncryptionError, match="the server multiplied by another weight"):
        check.verify(q, q @ changed.T)


def test_every_check_is_secret_and_fresh() -> None:
    _, weight = operands()
    torch.manual_seed(0)
    first = exact(weight)
    torch.manual_seed(0)
    second = exact(weight)
    assert not torch.equal(first.vector, second.vector)
    assert str(int(first.vector[0])) not in repr(first)
    assert 0 <= int(first.vector.min()) <= int(first.vector.max()) < PRIME
    assert int(first.vector.max()) > 2**57  # all bits are random


def test_an_answer_with_noise_may_be_off_by_the_noise_and_no_more() -> None:
    q, weight = operands(6, 40, 30)
    sigma = torch.full((30,), 19.0)
    check, y = AnswerCheck.of(weight, sigma), q @ weight.T
    check.verify(q, y + (8 * 19 * torch.sign(torch.randn(6, 30))).long())
    forged = y.clone()
    forged[4, 7] += int(2 * check.tolerance) + 1
    with pytest.raises(EncryptionError, match="wrong in 1 of 6 rows, first in row 4"):
        check.verify(q, forged)
    assert AnswerCheck.of(weight, sigma / 400).tolerance == 0  # rounding removes this noise


def test_a_check_survives_its_file_and_damage_is_refused() -> None:
    q, weight = operands()
    for sigma in (0.0, 19.0):
        check = AnswerCheck.of(weight, torch.full((7,), sigma))
        arrays = check.to_arrays()
        again = AnswerCheck.from_arrays(arrays, 7, 33)
        again.verify(q, q @ weight.T)
        assert torch.equal(again.vector, check.vector)
        assert again.tolerance == check.tolerance
        rest = [SIGNS] if sigma else []
        with pytest.raises(ValueError, match=r"check_image is int64 .*: expected int64") as caught:
            AnswerCheck.from_arrays(arrays, 7, 32)
        assert str(caught.value) == f"check_image is int64 {[33, *rest]}: expected int64 {[32, *rest]}"
        with pytest.raises(ValueError, match="check_vector is float64"):
            AnswerCheck.from_arrays(arrays | {"check_vector": arrays["check_vector"].astype(float)}, 7, 33)
        del arrays["check_vector"]
        with pytest.raises(KeyError):
            AnswerCheck.from_arrays(arrays, 7, 33)


def test_a_digest_depends_on_every_integer_and_the_shape() -> None:
    _, weight = operands()
    changed = weight.clone()
    changed[6, 32] += 1
    found = {weight_digest(weight), weight_digest(changed), weight_digest(weight.T), weight_digest(weight.view(33, 7))}
    assert len(found) == 4
    assert weight_digest(weight.clone()) in found
