"""The demo's recording backend counts bytes and products and does not change the results."""

from __future__ import annotations

from typing import Any

import torch

from conformance.demo.recording import RecordingBackend, Traffic
from reference.encrypted.encryption import Keys
from reference.encrypted.noise import PARAMETER_SETS


class Plain:
    """A backend without encryption: a ciphertext is the int64 values, eight bytes each."""

    parameters = PARAMETER_SETS["toy"]

    def keygen(self) -> Keys:
        return Keys(b"secret", b"evaluation")

    def encrypt(self, q: torch.Tensor, keys: Keys, **_: Any) -> bytes:
        return q.numpy().tobytes()

    def evaluate(self, ciphertext: bytes, weight: torch.Tensor, evaluation: bytes, **_: Any) -> bytes:
        q = torch.frombuffer(bytearray(ciphertext), dtype=torch.int64).reshape(-1, weight.shape[1])
        return (q @ weight.t()).numpy().tobytes()

    def decrypt(self, result: bytes, rows: int, columns: int, keys: Keys, **_: Any) -> torch.Tensor:
        return torch.frombuffer(bytearray(result), dtype=torch.int64).reshape(rows, columns)


def test_recording_counts_and_does_not_change_results() -> None:
    made = []
    recorder = RecordingBackend(Plain.parameters, lambda parameters: made.append(parameters) or Plain())
    assert not made
    keys = recorder.keygen()
    q, weight = torch.arange(6).reshape(2, 3), torch.arange(12).reshape(4, 3)
    for count in (1, 2):
        result = recorder.evaluate(recorder.encrypt(q, keys), weight, keys.evaluation)
        assert torch.equal(recorder.decrypt(result, 2, 4, keys), q @ weight.t())
        assert recorder.traffic == Traffic(up=48 * count, down=64 * count, products=count)
    assert made == [Plain.parameters]
