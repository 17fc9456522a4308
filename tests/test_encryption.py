"""Encrypted products: exact results, and errors for wrong operands, keys and parameters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import optimized
import reference
from reference.encrypted.encryption import ConcreteBackend, EncryptionError, Keys
from reference.encrypted.noise import EXACT, TOY
from tests.support import encrypted_products
from tests.support.encrypted_products import BACKEND, WEIGHT, product

SHAPES = [(1, 1, 1), (3, 1, 2), (1, 5, 1), (4, 1, 1), (2, 7, 3), (0, 5, 4), (1, 255, 2), (1, 256, 2), (1, 257, 2),
          (2, 700, 2), (1, 3, 256), (1, 2, 257), (1, 2, 513)]  # fmt: skip


def operands(m: int, k: int, n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * m + 10 * k + n)
    return (
        torch.randint(0, 256, (m, k), generator=generator),
        torch.randint(-128, 128, (n, k), generator=generator),
    )


class TestResults:
    @pytest.mark.parametrize(("m", "k", "n"), SHAPES)
    def test_results_are_the_integer_product(self, keys: Keys, m: int, k: int, n: int) -> None:
        q, weight = operands(m, k, n)
        got = product(BACKEND, q, weight, keys)
        assert got.dtype == torch.int64
        assert got.shape == (m, n)
        assert torch.equal(got, q @ weight.T)

    def test_results_are_exact_by_default(self, exact_keys: Keys) -> None:
        backend = ConcreteBackend()
        assert backend.parameters == EXACT
        for shape in ((2, 70, 3), (1, 2049, 2)):
            q, weight = operands(*shape)
            assert torch.equal(product(backend, q, weight, exact_keys), q @ weight.T)

    def test_results_cover_the_whole_range_and_wrap_beyond_it(self, keys: Keys) -> None:
        largest = 2**26 - 1
        q, weight = torch.tensor([[largest, 1, 0]]), torch.tensor([[1, 0, 0], [-1, -1, 0], [1, 1, 0], [-1, -2, 5]])
        assert product(BACKEND, q, weight, keys).tolist() == [[largest, -(2**26), -(2**26), largest]]

    def test_strided_operands_give_the_same_results(self, keys: Keys) -> None:
        q, weight = operands(2, 6, 3)
        assert torch.equal(product(BACKEND, q.T.contiguous().T, weight.T.contiguous().T, keys), q @ weight.T)
        assert torch.equal(product(BACKEND, q[:, ::2], weight[:, 1::2], keys), q[:, ::2] @ weight[:, 1::2].T)

    def test_two_encryptions_of_one_matrix_differ(self, keys: Keys, ciphertext: bytes) -> None:
        again = BACKEND.encrypt(encrypted_products.INPUTS, keys)
        assert len(again) == len(ciphertext)
        assert again != ciphertext

    def test_progress_is_reported_for_each_row(self, keys: Keys) -> None:
        told: list[tuple[int, int]] = []
        tell = lambda done, total: told.append((done, total))  # noqa: E731
        q, weight = operands(3, 4, 2)
        sealed = BACKEND.encrypt(q, keys, progress=tell)
        sealed = BACKEND.evaluate(sealed, weight, keys.evaluation, progress=tell)
        BACKEND.decrypt(sealed, 3, 2, keys, progress=tell)
        assert told == [(1, 3), (2, 3), (3, 3)] * 3

    def test_both_packages_export_the_same_encryption_classes(self) -> None:
        for name in ("Backend", "ConcreteBackend", "EncryptionError", "EncryptionParameters", "Keys"):
            assert getattr(optimized, name) is getattr(reference, name)


class TestWrongOperands:
    @pytest.mark.parametrize(
        ("q", "message"),
        [
            (torch.zeros(3, dtype=torch.int64), r"q is int64 \[3\]: expected int64, with two dimensions"),
            (torch.zeros(2, 3), r"q is float32 \[2, 3\]: expected int64"),
            (torch.zeros(2, 0, dtype=torch.int64), r"q is int64 \[2, 0\]: .*the second not empty"),
            (torch.tensor([[0, -1]]), "q is from -1 to 0: expected 0 to 67108863"),
            (torch.tensor([[0, 2**26]]), "q is from 0 to 67108864: expected 0 to 67108863"),
        ],
        ids=["vector", "float", "no features", "negative", "too large"],
    )
    def test_wrong_inputs_are_refused(self, keys: Keys, q: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BACKEND.encrypt(q, keys)

    @pytest.mark.parametrize(
        ("weight", "message"),
        [
            (WEIGHT.float(), r"weight is float32 \[2, 3\]: expected int64"),
            (WEIGHT[0], r"weight is int64 \[3\]"),
            (WEIGHT[:0], r"weight is \[0, 3\]: expected at least one row"),
            (WEIGHT[:, :2].contiguous(), r"weight is \[2, 2\] but the ciphertext has 3 features: .* must be 3"),
        ],
        ids=["float", "vector", "no rows", "features"],
    )
    def test_wrong_weights_are_refused(self, keys: Keys, ciphertext: bytes, weight: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BACKEND.evaluate(ciphertext, weight, keys.evaluation)

    def test_a_wrong_shape_of_the_result_is_refused(self, keys: Keys, result: bytes) -> None:
        with pytest.raises(EncryptionError, match=r"an encrypted result is \[2, 2\]: expected \[2, 3\]"):
            BACKEND.decrypt(result, 2, 3, keys)

    def test_unknown_parameters_and_zero_threads_are_refused(self) -> None:
        with pytest.raises(ValueError, match="parameters = 'small': expected one of exact, fast, toy"):
            ConcreteBackend("small")
        with pytest.raises(ValueError, match="threads = 0: expected at least 1"):
            ConcreteBackend(TOY, threads=0)


class TestWrongKeys:
    def test_other_keys_are_refused_by_evaluate_and_decrypt(
        self, keys: Keys, others: Keys, ciphertext: bytes, result: bytes
    ) -> None:
        with pytest.raises(EncryptionError, match=r"encrypted inputs came under the keys .* the evaluation key is of"):
            BACKEND.evaluate(ciphertext, WEIGHT, others.evaluation)
        with pytest.raises(EncryptionError, match=r"an encrypted result came under the keys .* the secret key is of"):
            BACKEND.decrypt(result, 2, 2, others)

    def test_another_parameter_set_is_refused_and_named(self, keys: Keys, ciphertext: bytes, result: bytes) -> None:
        exact = ConcreteBackend("exact")
        came = "came under the parameter set toy-insecure: expected the parameter set exact"
        with pytest.raises(EncryptionError, match=f"a secret key {came}"):
            exact.encrypt(torch.ones(1, 1, dtype=torch.int64), keys)
        with pytest.raises(EncryptionError, match=f"encrypted inputs {came}"):
            exact.evaluate(ciphertext, WEIGHT, keys.evaluation)
        with pytest.raises(EncryptionError, match=f"an encrypted result {came}"):
            exact.decrypt(result, 2, 2, keys)
        unknown = ConcreteBackend(dataclasses.replace(TOY, bits_out=44, name="mine"))
        with pytest.raises(EncryptionError, match="toy-insecure: expected the parameter set mine"):
            unknown.evaluate(ciphertext, WEIGHT, keys.evaluation)

    def test_a_message_of_another_kind_is_refused(self, keys: Keys, ciphertext: bytes, result: bytes) -> None:
        with pytest.raises(EncryptionError, match="an encrypted result came: expected encrypted inputs"):
            BACKEND.evaluate(result, WEIGHT, keys.evaluation)
        with pytest.raises(EncryptionError, match="a secret key came: expected an evaluation key"):
            BACKEND.evaluate(ciphertext, WEIGHT, keys.secret)
        with pytest.raises(EncryptionError, match="encrypted inputs came: expected an encrypted result"):
            BACKEND.decrypt(ciphertext, 2, 3, keys)
        with pytest.raises(EncryptionError, match="an evaluation key came: expected a secret key"):
            BACKEND.encrypt(WEIGHT.abs(), Keys(keys.evaluation, keys.secret))

    def test_a_bytearray_is_refused(self, keys: Keys, ciphertext: bytes) -> None:
        with pytest.raises(EncryptionError, match="encrypted inputs came as bytearray: expected bytes"):
            BACKEND.evaluate(bytearray(ciphertext), WEIGHT, keys.evaluation)  # type: ignore[arg-type]
        with pytest.raises(EncryptionError, match="an evaluation key came as bytearray: expected bytes"):
            BACKEND.evaluate(ciphertext, WEIGHT, bytearray(keys.evaluation))  # type: ignore[arg-type]

    def test_toy_keys_warn(self) -> None:
        with pytest.warns(UserWarning, match="the parameter set toy-insecure is not secure: use it only in tests"):
            BACKEND.keygen()
