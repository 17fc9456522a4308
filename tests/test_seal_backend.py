"""Products packed by tokens: exact to the edge of the bound, few bytes, and no trust in the other end."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reference import EncryptionError, HybridFHEModel, Keys, SealBackend
from reference.encrypted import modular, seal_library
from reference.encrypted.backends import NAMED, backend_for, parameters_from
from reference.encrypted.encryption import noise_of
from reference.encrypted.envelope import INPUTS, RESULT, Envelope
from reference.encrypted.polynomial_layout import FIRST, SECOND, Packing
from reference.encrypted.seal_backend import SEAL, PackedParameters, _written
from tests.support.commands import judged
from tests.support.int8_products import with_int8_products
from tests.support.server import serving

pytest.importorskip("seal")
BACKEND = SealBackend()
RADICES: tuple[tuple[modular.Radix, int, int], ...] = (
    (modular.Limbs(), 8, modular.LARGEST // 8),
    (modular.Bytes(), modular.LARGEST // 127, 127),
    (modular.Bytes(), 2, 127),
)
SIZE, LIMIT = SEAL.polynomial_size, SEAL.largest_row


@pytest.fixture
def with_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with int8 dot products."""
    with_int8_products(monkeypatch)


def product(q: Tensor, weight: Tensor, keys: Keys | None = None, **options: Any) -> Tensor:
    keys = keys or BACKEND.keygen()
    result = BACKEND.evaluate(BACKEND.encrypt(q, keys, **options), weight, keys.evaluation)
    return BACKEND.decrypt(result, len(q), len(weight), keys)


def operands(m: int, k: int, n: int, most: int = 127) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m + 7 * k + 31 * n)
    q = torch.randint(0, 256, (m, k), generator=generator)
    return q, torch.randint(-most, most + 1, (n, k), generator=generator)


def test_the_backend_passes_every_clause() -> None:
    report = judged("conformance.targets.seal", groups=["fhe"])
    found = {clause.id: clause.message for clause in report.clauses if clause.status not in ("pass", "not_claimed")}
    assert found == {}
    assert sum(clause.status == "pass" for clause in report.clauses) == 12


@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(1, 1, 1), (1, 300, 2), (3, 5, 40), (16, 70, 33), (682, 4, 5), (1025, 3, 2), (2048, 2, 3), (2051, 3, 2)],
)
def test_products_of_every_packing_are_exact(m: int, k: int, n: int) -> None:
    q, weight = operands(m, k, n)
    assert torch.equal(product(q, weight), q @ weight.T)
    assert torch.equal(product(q, weight, outputs=n), q @ weight.T)


@pytest.mark.parametrize("rows", [1, 30, SIZE])
def test_rows_at_the_bound_are_exact_and_larger_ones_refused(rows: int) -> None:
    """The largest rows that are accepted, with inputs whose products go all around the range."""
    k = 40
    q, _ = operands(rows, k, 1)
    weight = torch.full((4, k), LIMIT // k)
    weight[1::2] *= -1
    weight[2:, ::2] *= -1
    weight[:, 0] += (LIMIT - weight.abs().sum(1)) * weight[:, 0].sign()
    assert weight.abs().sum(1).tolist() == [LIMIT] * 4
    half = 1 << SEAL.bits - 1
    assert torch.equal(product(q, weight), (q @ weight.T + half) % (2 * half) - half)
    weight[1, 3] -= 1
    for refused in (lambda: product(q, weight), lambda: noise_of(BACKEND, weight)):
        with pytest.raises(
            ValueError, match=rf"row 1 of the weight sums to {LIMIT + 1} in absolute values: expected at"
        ):
            refused()


def test_the_bound_leaves_no_room_for_an_error() -> None:
    """The noise of the worst ciphertext, whose every part is at its end, stays below half a step of the plaintext."""
    step = SEAL.modulus / 2**SEAL.bits
    dropped = 2 ** (SEAL.dropped[0] - 1) + SIZE * 2 ** (SEAL.dropped[1] - 1)
    assert 21.5 * LIMIT + dropped < step / 2 < 21.5 * (LIMIT + 1) + dropped


def test_a_result_is_restored_within_half_of_what_was_dropped() -> None:
    first, second = SEAL.dropped
    sent = np.array([[0, 1 << 20, SEAL.modulus - 1, 12345678901234]], np.int64)
    wide = np.resize(sent, (1, SIZE))
    block = _written(torch.from_numpy(sent >> first), FIRST) + _written(torch.from_numpy(wide >> second), SECOND)
    pairs = BACKEND._restored(memoryview(block), 1, torch.arange(4)).astype(np.int64)
    for found, exact, bits in ((pairs[0, 0, :4], sent[0], first), (pairs[0, 1], wide[0], second)):
        off = (found - exact) % SEAL.modulus
        assert np.minimum(off, SEAL.modulus - off).max() <= 2 ** (bits - 1)


def test_fresh_noise_is_within_the_samplers_end() -> None:
    library = seal_library.opened(SIZE, SEAL.modulus, SEAL.bits)
    key = library.new_key()
    encrypt, decryptor = library.encryptor(key), library.decryptor(key).decryptor
    ciphertext = seal_library.import_library().Ciphertext()
    for _ in range(50):
        ciphertext.load_bytes(library.context, library.cipher_head + encrypt(np.zeros(SIZE, np.uint64)).tobytes())
        below = decryptor.invariant_noise_budget(ciphertext)  # bits between the noise and q / 2^28
        assert 2.0 ** (24 - below - 1) <= 21


@pytest.mark.parametrize(
    ("m", "k", "n", "most"), [(2048, 512, 512, 25_000_000), (16, 512, 512, 2_000_000), (64, 512, 512, 4_000_000)]
)
def test_few_bytes_travel(m: int, k: int, n: int, most: int) -> None:
    packing = Packing.cheapest(m, k, n, SIZE)
    assert packing.bytes_up(k) + packing.bytes_down(n) <= most
    others = [
        Packing(m, features, outputs, SIZE)
        for features, outputs in itertools.product(range(1, SIZE // m + 1), repeat=2)
        if m * features * outputs <= SIZE and features <= k and outputs <= n
    ]
    sizes = [other.bytes_up(k) + other.bytes_down(n) for other in others]
    assert packing.bytes_up(k) + packing.bytes_down(n) == min(sizes)


def test_messages_have_the_size_that_the_packing_says() -> None:
    q, weight = operands(16, 96, 80)
    keys, packing = BACKEND.keygen(), Packing.cheapest(16, 96, 80, SIZE)
    up = BACKEND.encrypt(q, keys, outputs=80)
    down = BACKEND.evaluate(up, weight, keys.evaluation)
    for kind, message, expected in ((INPUTS, up, packing.bytes_up(96)), (RESULT, down, packing.bytes_down(80))):
        assert len(Envelope.open(message, kind, SEAL).contents) == expected + Packing.HEADER
    assert len(keys.evaluation) < 200


@pytest.mark.usefixtures("with_int8")
@pytest.mark.parametrize(("radix", "k", "most"), RADICES)
def test_a_product_modulo_q_is_exact_at_the_ends(radix: modular.Radix, k: int, most: int) -> None:
    q = SEAL.modulus
    weight = torch.tensor([[most] * k, [-most] * k, [1, -1] * (k // 2), [0] * k])
    coefficients = np.full((k, 4), q - 1, np.uint64)
    coefficients[:, 1], coefficients[::2, 2], coefficients[:, 3] = 0, 1, 2**56 - 1
    assert isinstance(radix, modular.Limbs) or modular.why_not_bytes(weight) is None
    planes = modular.written(coefficients)
    for each, sign in ((planes, 1), (modular.negated(planes, q), -1)):
        found = radix.product(weight, radix.digits(each), q).numpy().astype(object)
        exact = sign * (weight.numpy().astype(object) @ coefficients.astype(object))
        assert ((found - exact) % q == 0).all()
        assert abs(found).max() < 2**53


def test_operands_for_which_a_product_is_not_exact_are_refused() -> None:
    weight = torch.full((2, 8), modular.LARGEST // 8)
    modular.check(weight, SEAL.modulus)
    for beyond in (weight + 1, -weight - 1):
        with pytest.raises(ValueError, match=rf"sums to {modular.LARGEST + 8} in absolute values: expected at most"):
            modular.check(beyond, SEAL.modulus)
    for modulus in (2**52 - 2**26, 2**52):
        modular.check(weight, modulus)
        beyond = modulus + (1 if modulus == 2**52 else -1)
        with pytest.raises(ValueError, match=rf"modulus = {beyond}: expected 2\^52 - 2\^26 to 2\^52"):
            modular.check(weight, beyond)


@pytest.mark.usefixtures("with_int8")
def test_int8_products_are_chosen_where_they_are_exact() -> None:
    weight = torch.tensor([[-128, 127], [0, 1]])
    assert modular.why_not_bytes(weight) is None
    assert modular.why_not_bytes(weight * 2) == "the weight does not fit int8"
    assert "one feature" in str(modular.why_not_bytes(weight[:, :1]))
    assert modular.why_not_bytes(weight.to("meta")) == "this meta has no int8 dot product with int32 sums"


@pytest.mark.usefixtures("with_int8")
def test_both_radices_give_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    q, weight = operands(16, 70, 33)
    keys = BACKEND.keygen()
    ciphertext = BACKEND.encrypt(q, keys, outputs=33)
    first = BACKEND.evaluate(ciphertext, weight, keys.evaluation)
    monkeypatch.setattr(modular, "has_vnni", lambda: False)
    assert BACKEND.evaluate(ciphertext, weight, keys.evaluation) == first


def test_a_server_needs_no_encryption_library(monkeypatch: pytest.MonkeyPatch) -> None:
    q, weight = operands(2, 3, 4)
    keys = BACKEND.keygen()
    ciphertext = BACKEND.encrypt(q, keys)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "seal", None)
        seal_library.opened.cache_clear()
        server = backend_for(parameters_from(dataclasses.asdict(SEAL)))
        result = server.evaluate(ciphertext, weight, keys.evaluation)
        with pytest.raises(
            ModuleNotFoundError, match=r"the backend seal needs seal-python: pip install 'loraspec\[fhe\]'"
        ):
            server.keygen()
    assert torch.equal(BACKEND.decrypt(result, 2, 4, keys), q @ weight.T)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (2, 3, 400), (2**40, 1, 1)])
def test_a_forged_packing_is_refused(numbers: tuple[int, int, int]) -> None:
    q, weight = operands(2, 3, 4)
    keys = BACKEND.keygen()
    inputs = Envelope.open(BACKEND.encrypt(q, keys), INPUTS, SEAL)
    header = b"".join(number.to_bytes(8, "little") for number in numbers)
    forged = dataclasses.replace(inputs, contents=header + inputs.contents[Packing.HEADER :]).seal()
    with pytest.raises(EncryptionError, match=r"encrypted inputs came with invalid contents: rows·features·outputs = "):
        BACKEND.evaluate(forged, weight, keys.evaluation)
    fewer = dataclasses.replace(inputs, rows=5000).seal()
    with pytest.raises(EncryptionError, match=r"came as \d+ bytes: expected \d+ for 5000 rows of 3 columns"):
        BACKEND.evaluate(fewer, weight, keys.evaluation)


def test_progress_ends_at_all_rows() -> None:
    q, weight = operands(2100, 2, 2)
    keys, told = BACKEND.keygen(), []
    ciphertext = BACKEND.encrypt(q, keys, progress=lambda *at: told.append(at))
    result = BACKEND.evaluate(ciphertext, weight, keys.evaluation, progress=lambda *at: told.append(at))
    BACKEND.decrypt(result, 2100, 2, keys, progress=lambda *at: told.append(at))
    assert told == [(2048, 2100), (2100, 2100)] * 3


def test_every_parameter_but_the_name_is_in_the_fingerprint() -> None:
    assert dataclasses.replace(SEAL, name="other").fingerprint() == SEAL.fingerprint()
    for name, value in (("bits", 26), ("dropped", (20, 13)), ("modulus", SEAL.modulus - 2), ("polynomial_size", 4096)):
        assert dataclasses.replace(SEAL, **{name: value}).fingerprint() != SEAL.fingerprint()
    with pytest.raises(TypeError, match="parameters are str: expected EncryptionParameters or PackedParameters"):
        backend_for("seal")  # type: ignore[arg-type]
    assert isinstance(NAMED["seal"], PackedParameters)


def test_a_split_model_runs_here_and_at_a_server_with_new_keys_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(70, 6)
    split = HybridFHEModel(model, ["0", "2"], backend="seal")
    split.compile_model(x, 6)
    expected = split(x, fhe="disable")
    assert torch.equal(split(x, fhe="simulate"), expected)  # nothing is random about a result
    used: list[Keys] = []
    encrypt = split._split.backend.encrypt

    def recorded(q: Tensor, keys: Keys, **options: Any) -> bytes:
        used.append(keys)
        return encrypt(q, keys, **options)

    monkeypatch.setattr(split._split.backend, "encrypt", recorded)
    assert torch.equal(split(x, fhe="execute"), expected)
    split.save_and_clear_private_info(tmp_path)
    with serving(tmp_path / "server") as server:
        split._split.server = server.address
        assert torch.equal(split(x, fhe="remote"), expected)
    assert len(used) == 4
    assert len({keys.evaluation for keys in used}) == 4


@pytest.mark.parametrize(("features", "outputs"), [(0, 1), (3, 400)])
def test_a_packing_beyond_its_polynomial_is_refused(features: int, outputs: int) -> None:
    numbers = f"7·{features}·{outputs} = {7 * features * outputs}"
    with pytest.raises(ValueError, match=f"rows·features·outputs = {numbers}: expected 1 to 8192"):
        Packing(7, features, outputs, 8192)
