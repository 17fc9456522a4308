"""Keys: how they print, pickle and save. Also the processes and threads in which the encryption library runs."""

from __future__ import annotations

import copy
import os
import pickle
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from reference.encrypted.encryption import ConcreteBackend, EncryptionError, Keys
from reference.encrypted.envelope import SECRET, Envelope
from reference.encrypted.noise import TOY


class TestKeys:
    def test_no_string_form_of_keys_contains_the_secret(self, keys: Keys) -> None:
        secret = Envelope.open(keys.secret, SECRET, TOY).contents
        for text in (repr(keys), str(keys), f"{keys}", f"{[keys]}"):
            assert text.count("Keys(secret=<hidden>, evaluation=<5243049 bytes>)") == 1
            assert repr(secret[:16])[2:-1] not in text
        assert not hasattr(keys, "__dict__")

    def test_keys_refuse_pickling_and_copies_are_the_same_object(self, keys: Keys) -> None:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="keys are not pickled: use save and load"):
                pickle.dumps(keys, protocol)
        with pytest.raises(TypeError):
            keys.__getstate__()
        assert copy.copy(keys) is keys
        assert copy.deepcopy([keys])[0] is keys

    def test_a_saved_pair_loads_unchanged_and_only_its_owner_can_read_it(
        self, keys: Keys, ciphertext: bytes, tmp_path: Path
    ) -> None:
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
    def test_a_key_file_that_others_can_access_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "keys"
        Keys(b"secret", b"evaluation").save(path)
        path.chmod(mode)
        with pytest.raises(EncryptionError, match=f"keys has mode 0{mode:o}: others can reach .*0600"):
            Keys.load(path)
        path.chmod(0o400)
        assert Keys.load(path).secret == b"secret"

    def test_a_damaged_key_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        Keys(b"secret", b"evaluation").save(path)
        whole = path.read_bytes()
        broken = [whole[:cut] for cut in range(len(whole))] + [whole + b"\0", random.Random(0).randbytes(len(whole))]
        broken += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(len(whole))]
        for content in broken:
            path.write_bytes(content)
            with pytest.raises(EncryptionError, match=r"is not a file of keys|bytes: expected|is damaged") as caught:
                Keys.load(path)
            assert "secret" not in str(caught.value).replace(str(path), "")

    def test_a_failed_save_keeps_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Run a script in a new process and return its output; a hang fails after a minute."""
    command = [sys.executable, "-c", IN_A_PROCESS + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestProcesses:
    def test_a_forked_process_gets_an_error_that_recommends_spawn(self) -> None:
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

    def test_the_first_use_fixes_the_number_of_threads(self) -> None:
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

    def test_a_missing_library_is_reported_with_the_install_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "concrete_ml_extensions", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'loraspec\[fhe\]'"):
            ConcreteBackend()
