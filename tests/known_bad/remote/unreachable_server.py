"""Known-bad twins of unreachable server: a client hides that its server is gone, or never stops waiting."""

from __future__ import annotations

import time

import torch

import reference
from tests.baselines.remote import remote_breaks


@remote_breaks("REM-DOWN", says="returned Tensor: expected an error")
class AnswersZerosForADeadServer(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        try:
            return super()._encrypted(quantized, x, mode)
        except reference.RemoteError:
            return torch.zeros(len(x.values), self.out_features, dtype=torch.int64)


@remote_breaks("REM-DOWN", says="does not name")
class HidesTheAddress(reference.RemoteClient):
    def evaluate(self, model_name, module_name, ciphertext, evaluation, **options):
        try:
            return super().evaluate(model_name, module_name, ciphertext, evaluation, **options)
        except reference.RemoteError:
            raise RuntimeError("the server did not answer") from None


@remote_breaks("REM-DOWN", says="it does not name 127.0.0.1:")
class NamesThePortAlone(reference.RemoteClient):
    def evaluate(self, model_name, module_name, ciphertext, evaluation, **options):
        try:
            return super().evaluate(model_name, module_name, ciphertext, evaluation, **options)
        except reference.RemoteError as error:
            raise reference.RemoteError(str(error).replace("127.0.0.1", "the server")) from None


@remote_breaks("REM-DOWN", says="expected RemoteError")
class RaisesWhatTheLibraryRaises(reference.RemoteClient):
    def evaluate(self, model_name, module_name, ciphertext, evaluation, **options):
        try:
            return super().evaluate(model_name, module_name, ciphertext, evaluation, **options)
        except reference.RemoteError as error:
            raise ConnectionError(str(error)) from None


@remote_breaks("REM-DOWN", says="does not end within")
class TriesForEver(reference.RemoteClient):
    def evaluate(self, model_name, module_name, ciphertext, evaluation, **options):
        for _ in range(300):  # longer than the clause waits
            try:
                return super().evaluate(model_name, module_name, ciphertext, evaluation, **options)
            except reference.RemoteError:
                time.sleep(0.1)
        raise AssertionError


@remote_breaks("REM-DOWN", says="the model with fhe='remote' raised RuntimeError: the server was down")
class GivesUpForGood(reference.RemoteClient):
    lost = False

    def evaluate(self, model_name, module_name, ciphertext, evaluation, **options):
        if self.lost:
            raise RuntimeError("the server was down")
        try:
            return super().evaluate(model_name, module_name, ciphertext, evaluation, **options)
        except reference.RemoteError:
            self.lost = True
            raise
