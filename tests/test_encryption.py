"""Encrypted products: exact results, and what every wrong key, byte, shape, process and file is answered with.

Hostile bytes are also given a right checksum here (`forged`), as a server's client could: no such message may
reach the library, which would take the process down with it.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import optimized
import reference
from reference import envelope
from reference.encryption import Backend, ConcreteBackend, EncryptionError, Keys
from reference.envelope import EVALUATION, INPUTS, RESULT, SECRET, Envelope
from reference.noise import EXACT, TOY
from tests import noise_law

BACKEND = ConcreteBackend(TOY)
SHAPES = [(1, 1, 1), (3, 1, 2), (1, 5, 1), (4, 1, 1), (2, 7, 3), (0, 5, 4), (1, 255, 2), (1, 256, 2), (1, 257, 2),
          (2, 700, 2), (1, 3, 256), (1, 2, 257), (1, 2, 513)]  # fmt: skip


@pytest.fixture(scope="module")
def keys() -> Keys:
    return noise_law.new_keys(BACKEND)


@pytest.fixture(scope="module")
def others() -> Keys:
    return noise_law.new_keys(BACKEND)


@pytest.fixture(scope="session")
def exact_keys() -> Keys:
    return ConcreteBackend().keygen()


@pytest.fixture(scope="module")
def ciphertext(keys: Keys) -> bytes:
    return BACKEND.encrypt(torch.tensor([[1, 2, 3], [4, 5, 6]]), keys)


WEIGHT = torch.tensor([[1, -1, 0], [2, 0, -128]])


@pytest.fixture(scope="module")
def result(ciphertext: bytes, keys: Keys) -> bytes:
    return BACKEND.evaluate(ciphertext, WEIGHT, keys.evaluation)


def product(backend: Backend, q: Tensor, weight: Tensor, keys: Keys) -> Tensor:
    result = backend.evaluate(backend.encrypt(q, keys), weight, keys.evaluation)
    return backend.decrypt(result, len(q), len(weight), keys)


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

    def test_the_whole_range_comes_back_and_beyond_it_wraps(self, keys: Keys) -> None:
        largest = 2**26 - 1
        q, weight = torch.tensor([[largest, 1, 0]]), torch.tensor([[1, 0, 0], [-1, -1, 0], [1, 1, 0], [-1, -2, 5]])
        assert product(BACKEND, q, weight, keys).tolist() == [[largest, -(2**26), -(2**26), largest]]

    def test_layout_in_memory_does_not_matter(self, keys: Keys) -> None:
        q, weight = operands(2, 6, 3)
        assert torch.equal(product(BACKEND, q.T.contiguous().T, weight.T.contiguous().T, keys), q @ weight.T)
        assert torch.equal(product(BACKEND, q[:, ::2], weight[:, 1::2], keys), q[:, ::2] @ weight[:, 1::2].T)

    def test_two_encryptions_of_one_matrix_differ(self, keys: Keys, ciphertext: bytes) -> None:
        again = BACKEND.encrypt(torch.tensor([[1, 2, 3], [4, 5, 6]]), keys)
        assert len(again) == len(ciphertext)
        assert again != ciphertext

    def test_progress_is_told_row_by_row(self, keys: Keys) -> None:
        told: list[tuple[int, int]] = []
        tell = lambda done, total: told.append((done, total))  # noqa: E731
        q, weight = operands(3, 4, 2)
        sealed = BACKEND.encrypt(q, keys, progress=tell)
        sealed = BACKEND.evaluate(sealed, weight, keys.evaluation, progress=tell)
        BACKEND.decrypt(sealed, 3, 2, keys, progress=tell)
        assert told == [(1, 3), (2, 3), (3, 3)] * 3

    def test_both_packages_have_the_same(self) -> None:
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
    def test_inputs(self, keys: Keys, q: Tensor, message: str) -> None:
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
    def test_weights(self, keys: Keys, ciphertext: bytes, weight: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BACKEND.evaluate(ciphertext, weight, keys.evaluation)

    def test_shape_of_the_result(self, keys: Keys, result: bytes) -> None:
        with pytest.raises(EncryptionError, match=r"an encrypted result is \[2, 2\]: expected \[2, 3\]"):
            BACKEND.decrypt(result, 2, 3, keys)

    def test_parameters_and_threads(self) -> None:
        with pytest.raises(ValueError, match="parameters = 'small': expected one of exact, fast, toy"):
            ConcreteBackend("small")
        with pytest.raises(ValueError, match="threads = 0: expected at least 1"):
            ConcreteBackend(TOY, threads=0)


class TestWrongKeys:
    def test_other_keys_are_refused_at_either_end(
        self, keys: Keys, others: Keys, ciphertext: bytes, result: bytes
    ) -> None:
        with pytest.raises(EncryptionError, match=r"encrypted inputs came under the keys .* the evaluation key is of"):
            BACKEND.evaluate(ciphertext, WEIGHT, others.evaluation)
        with pytest.raises(EncryptionError, match=r"an encrypted result came under the keys .* the secret key is of"):
            BACKEND.decrypt(result, 2, 2, others)

    def test_other_parameters_are_refused_by_name(self, keys: Keys, ciphertext: bytes, result: bytes) -> None:
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

    def test_one_kind_is_not_taken_for_another(self, keys: Keys, ciphertext: bytes, result: bytes) -> None:
        with pytest.raises(EncryptionError, match="an encrypted result came: expected encrypted inputs"):
            BACKEND.evaluate(result, WEIGHT, keys.evaluation)
        with pytest.raises(EncryptionError, match="a secret key came: expected an evaluation key"):
            BACKEND.evaluate(ciphertext, WEIGHT, keys.secret)
        with pytest.raises(EncryptionError, match="encrypted inputs came: expected an encrypted result"):
            BACKEND.decrypt(ciphertext, 2, 3, keys)
        with pytest.raises(EncryptionError, match="an evaluation key came: expected a secret key"):
            BACKEND.encrypt(WEIGHT.abs(), Keys(keys.evaluation, keys.secret))

    def test_what_is_no_bytes_is_refused(self, keys: Keys, ciphertext: bytes) -> None:
        with pytest.raises(EncryptionError, match="encrypted inputs came as bytearray: expected bytes"):
            BACKEND.evaluate(bytearray(ciphertext), WEIGHT, keys.evaluation)  # type: ignore[arg-type]
        with pytest.raises(EncryptionError, match="an evaluation key came as bytearray: expected bytes"):
            BACKEND.evaluate(ciphertext, WEIGHT, bytearray(keys.evaluation))  # type: ignore[arg-type]

    def test_toy_keys_warn(self) -> None:
        with pytest.warns(UserWarning, match="the parameter set toy-insecure is not secure: for tests alone"):
            BACKEND.keygen()


def damaged(message: bytes) -> Iterator[bytes]:
    """Truncated at many points, lengthened, with single bits flipped, and random."""
    chance = random.Random(0)
    header = 89
    inside = [chance.randrange(len(message)) for _ in range(20)]
    for cut in (*range(0, header + 20, 5), header, *inside, len(message) - 1):
        yield message[:cut]
    yield message + b"\0"
    for at in (*range(header + 8), *inside, len(message) - 1):
        flipped = bytearray(message)
        flipped[at] ^= 1 << chance.randrange(8)
        yield bytes(flipped)
    for length in (1, header - 1, header, 200, len(message)):
        yield chance.randbytes(length)
        yield message[:8] + chance.randbytes(length)


def forged(message: bytes, kind: str) -> Iterator[bytes]:
    """Messages with right checksums whose contents have another length, or sizes in them that are not so."""
    sealed = Envelope.open(message, kind, TOY)
    contents = sealed.contents
    chance = random.Random(1)

    def forge(**changes: object) -> bytes:
        return dataclasses.replace(sealed, **changes).seal()  # type: ignore[arg-type]

    for cut in (0, 1, 8, len(contents) // 2, len(contents) - 8, len(contents) - 1):
        yield forge(contents=contents[:cut])
    yield forge(contents=contents + contents)
    yield forge(contents=chance.randbytes(len(contents)))
    for at in _sizes(contents):
        for value in (0, 1, 2**40, 2**62):
            if contents[at : at + 8] != value.to_bytes(8, "little"):
                yield forge(contents=contents[:at] + value.to_bytes(8, "little") + contents[at + 8 :])
    if sealed.columns:
        for changes in ({"rows": sealed.rows + 1}, {"rows": 2**63}, {"columns": 2**63}, {"columns": 0}, {"rows": 0}):
            yield forge(**changes)


def _sizes(contents: bytes) -> Iterator[int]:
    """Where words are small: sizes and lengths, which are not coefficients."""
    for at in range(0, len(contents) - 7, 8):
        if int.from_bytes(contents[at : at + 8], "little") < 10**6:
            yield at


class TestHostileBytes:
    @pytest.mark.parametrize(
        ("message", "says"),
        [
            (b"", "came as 0 bytes: expected at least the 89 of its header"),
            (b"LORAFHE\x01", "came as 8 bytes"),
            (bytes(200), "these bytes are something else"),
            (b"LORAFHE\x01" + bytes(200), "wrong checksum: it was cut off or changed on its way"),
        ],
        ids=["nothing", "little", "other", "changed"],
    )
    def test_the_message_says_what_is_wrong(self, keys: Keys, message: bytes, says: str) -> None:
        with pytest.raises(EncryptionError, match=f"encrypted inputs {says}|encrypted inputs came with.* {says}"):
            BACKEND.evaluate(message, WEIGHT, keys.evaluation)

    def test_a_damaged_ciphertext_is_refused(self, keys: Keys, ciphertext: bytes) -> None:
        for message in damaged(ciphertext):
            with pytest.raises(EncryptionError, match="encrypted inputs came"):
                BACKEND.evaluate(message, WEIGHT, keys.evaluation)

    def test_a_damaged_result_is_refused(self, keys: Keys, result: bytes) -> None:
        for message in damaged(result):
            with pytest.raises(EncryptionError, match="an encrypted result came"):
                BACKEND.decrypt(message, 2, 2, keys)

    def test_damaged_keys_are_refused(self, keys: Keys, ciphertext: bytes) -> None:
        for message in damaged(keys.secret):
            with pytest.raises(EncryptionError, match="a secret key came") as caught:
                BACKEND.encrypt(WEIGHT.abs(), Keys(message, keys.evaluation))
            assert repr(keys.secret[100:110])[2:-1] not in str(caught.value)
        for message in list(damaged(keys.evaluation))[::12]:
            with pytest.raises(EncryptionError, match="an evaluation key came"):
                BACKEND.evaluate(ciphertext, WEIGHT, message)

    def test_a_forged_ciphertext_never_reaches_the_library(self, keys: Keys, ciphertext: bytes) -> None:
        for message in forged(ciphertext, INPUTS):
            with pytest.raises((EncryptionError, ValueError), match=r"encrypted inputs came as|contents|features"):
                BACKEND.evaluate(message, WEIGHT, keys.evaluation)

    def test_a_forged_result_never_reaches_the_library(self, keys: Keys, result: bytes) -> None:
        for message in forged(result, RESULT):
            shape = Envelope.open(message, RESULT, TOY)
            with pytest.raises(EncryptionError, match=r"an encrypted result came (as|with contents)"):
                BACKEND.decrypt(message, shape.rows, shape.columns, keys)

    def test_forged_keys_never_reach_the_library(self, keys: Keys, ciphertext: bytes) -> None:
        sealed = Envelope.open(keys.secret, SECRET, TOY)
        for at in (0, 2056, 2064, 4120):
            contents = sealed.contents[:at] + (2**40).to_bytes(8, "little") + sealed.contents[at + 8 :]
            with pytest.raises(EncryptionError, match="a secret key came with contents that are none"):
                BACKEND.encrypt(
                    WEIGHT.abs(), Keys(dataclasses.replace(sealed, contents=contents).seal(), keys.evaluation)
                )
        sealed = Envelope.open(keys.evaluation, EVALUATION, TOY)
        for at in (0, *range(len(sealed.contents) - 72, len(sealed.contents), 8)):
            contents = sealed.contents[:at] + (2**40).to_bytes(8, "little") + sealed.contents[at + 8 :]
            renamed = dataclasses.replace(sealed, contents=contents, key_id=envelope.digest(contents)[:16])
            with pytest.raises(EncryptionError, match="an evaluation key came with contents that are none"):
                BACKEND.evaluate(ciphertext, WEIGHT, renamed.seal())

    def test_a_key_under_the_name_of_another_is_refused(self, keys: Keys, others: Keys, ciphertext: bytes) -> None:
        sealed = Envelope.open(others.evaluation, EVALUATION, TOY)
        name = Envelope.open(keys.evaluation, EVALUATION, TOY).key_id
        with pytest.raises(EncryptionError, match="an evaluation key came under the name of another"):
            BACKEND.evaluate(ciphertext, WEIGHT, dataclasses.replace(sealed, key_id=name).seal())

    def test_any_coefficients_and_seeds_are_computed_with(self, keys: Keys, ciphertext: bytes, result: bytes) -> None:
        chance = random.Random(2)
        sealed = Envelope.open(ciphertext, INPUTS, TOY)
        for fill in (b"\xff" * 1920, chance.randbytes(1920)):
            row = sealed.contents[:24] + fill + sealed.contents[24 + 1920 : len(sealed.contents) // 2]
            message = dataclasses.replace(sealed, rows=1, contents=row).seal()
            changed = BACKEND.evaluate(message, WEIGHT, keys.evaluation)
            assert BACKEND.decrypt(changed, 1, 2, keys).shape == (1, 2)
        sealed = Envelope.open(result, RESULT, TOY)
        row = sealed.contents[:24] + b"\xff" * 1456 + sealed.contents[24 + 1456 : len(sealed.contents) // 2]
        assert BACKEND.decrypt(dataclasses.replace(sealed, rows=1, contents=row).seal(), 1, 2, keys).shape == (1, 2)

    def test_a_panic_is_an_error_and_the_next_call_works(self, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("reference.encryption.layout.follows", lambda *_: True)
        sealed = Envelope.open(keys.secret, SECRET, TOY)
        broken = dataclasses.replace(sealed, contents=sealed.contents[:-9]).seal()
        with pytest.raises(EncryptionError, match=r"encrypt: concrete-ml-extensions stopped at .*UnexpectedEof"):
            BACKEND.encrypt(WEIGHT.abs(), Keys(broken, keys.evaluation))
        monkeypatch.undo()
        assert torch.equal(product(BACKEND, WEIGHT.abs(), WEIGHT, keys), WEIGHT.abs() @ WEIGHT.T)

    def test_an_interrupt_is_no_panic(self, keys: Keys) -> None:
        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt(done, total)

        with pytest.raises(KeyboardInterrupt):
            BACKEND.encrypt(WEIGHT.abs(), keys, progress=interrupt)


class TestKeys:
    def test_the_secret_is_in_no_representation(self, keys: Keys) -> None:
        secret = Envelope.open(keys.secret, SECRET, TOY).contents
        for text in (repr(keys), str(keys), f"{keys}", f"{[keys]}"):
            assert text.count("Keys(secret=<hidden>, evaluation=<5243049 bytes>)") == 1
            assert repr(secret[:16])[2:-1] not in text
        assert not hasattr(keys, "__dict__")

    def test_keys_are_not_pickled_and_copies_are_the_same(self, keys: Keys) -> None:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="keys are not pickled: use save and load"):
                pickle.dumps(keys, protocol)
        with pytest.raises(TypeError):
            keys.__getstate__()
        assert copy.copy(keys) is keys
        assert copy.deepcopy([keys])[0] is keys

    def test_a_saved_pair_is_the_same_and_its_owners_alone(self, keys: Keys, ciphertext: bytes, tmp_path: Path) -> None:
        old = os.umask(0)
        try:
            keys.save(tmp_path / "keys")
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
        loaded = Keys.load(str(tmp_path / "keys"))
        assert (loaded.secret, loaded.evaluation) == (keys.secret, keys.evaluation)
        assert [p.name for p in tmp_path.iterdir()] == ["keys"]

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
    def test_a_file_that_others_reach_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "keys"
        Keys(b"secret", b"evaluation").save(path)
        path.chmod(mode)
        with pytest.raises(EncryptionError, match=f"keys has mode 0{mode:o}: others can reach .*0600"):
            Keys.load(path)
        path.chmod(0o400)
        assert Keys.load(path).secret == b"secret"

    def test_a_damaged_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        Keys(b"secret", b"evaluation").save(path)
        whole = path.read_bytes()
        broken = [whole[:cut] for cut in range(len(whole))] + [whole + b"\0", random.Random(0).randbytes(len(whole))]
        broken += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(len(whole))]
        for content in broken:
            path.write_bytes(content)
            with pytest.raises(EncryptionError, match=r"is no file of keys|bytes: expected|is damaged") as caught:
                Keys.load(path)
            assert "secret" not in str(caught.value).replace(str(path), "")

    def test_a_failed_save_leaves_what_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "keys"
        Keys(b"first", b"pair").save(path)

        def fail(descriptor: int) -> None:
            raise OSError(28, f"no space left for {descriptor}")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space"):
            Keys(b"second", b"pair").save(path)
        assert Keys.load(path).secret == b"first"
        assert [p.name for p in tmp_path.iterdir()] == ["keys"]
        with pytest.raises(FileNotFoundError):
            Keys(b"second", b"pair").save(tmp_path / "nowhere" / "keys")
        with pytest.raises(FileNotFoundError):
            Keys.load(tmp_path / "other")


IN_A_PROCESS = """
import os, sys, warnings
warnings.simplefilter("ignore")
os.environ.pop("RAYON_NUM_THREADS", None)
import reference
assert "concrete_ml_extensions" not in sys.modules, "imported with the package"
from reference import ConcreteBackend, EncryptionError
backend = ConcreteBackend("toy", threads=1)
"""


def in_a_process(script: str) -> str:
    """What a script prints; a minute is more than it takes, so a hang fails."""
    command = [sys.executable, "-c", IN_A_PROCESS + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestProcesses:
    def test_a_forked_process_is_told_to_be_spawned(self) -> None:
        said = in_a_process(
            """
import torch
keys = backend.keygen()
one = torch.ones(1, 1, dtype=torch.int64)
ciphertext = backend.encrypt(one, keys)
result = backend.evaluate(ciphertext, one, keys.evaluation)
child = os.fork()
if child == 0:
    for work in (
        lambda: backend.keygen(), lambda: backend.encrypt(one, keys), lambda: ConcreteBackend("fast"),
        lambda: backend.evaluate(ciphertext, one, keys.evaluation), lambda: backend.decrypt(result, 1, 1, keys),
    ):
        try:
            work()
        except EncryptionError as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", backend.decrypt(result, 1, 1, keys).item())
"""
        ).splitlines()
        assert len(said) == 6
        assert all('multiprocessing.get_context("spawn")' in line and "would hang" in line for line in said[:5])
        assert said[5] == "parent 1"

    def test_the_number_of_threads_is_settled_by_the_first_use(self) -> None:
        said = in_a_process(
            """
import pickle
ConcreteBackend("toy", threads=2)  # not used: settles nothing
backend = pickle.loads(pickle.dumps(backend))  # as a spawned process gets it
late = ConcreteBackend("toy", threads=2)
backend.keygen()
print(os.environ["RAYON_NUM_THREADS"])
ConcreteBackend("toy")
ConcreteBackend("toy", threads=1).keygen()
for work in (lambda: ConcreteBackend("toy", threads=2), late.keygen):
    try:
        work()
    except EncryptionError as error:
        print(error)
"""
        ).splitlines()
        assert said[0] == "1"
        assert len(said) == 3
        assert said[1] == said[2]
        assert said[1].startswith("threads = 2, but concrete-ml-extensions was started with 1 in this process")

    def test_without_the_library_the_message_has_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "concrete_ml_extensions", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'loraspec\[fhe\]'"):
            ConcreteBackend()
