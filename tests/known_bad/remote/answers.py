"""Known-bad twins of answers: a client believes its server, or reads whatever it sends."""

from __future__ import annotations

import reference
from reference.encrypted.answer_check import AnswerCheck
from tests.baselines.remote import remote_breaks


def _believe(*_):
    """Find every answer right."""


@remote_breaks("REM-ANSWER", says="with an answer that is stale, returned Tensor: expected Exception")
class TrustsItsServer(reference.RemoteModule):
    @property
    def answer_check(self):
        right = super().answer_check
        changed = AnswerCheck(right.vector, right.image, right.tolerance)
        object.__setattr__(changed, "verify", _believe)
        return changed


@remote_breaks("REM-ANSWER", says="raised RuntimeError: the server lied once")
class NeverTrustsAgain(reference.RemoteModule):
    lied = False

    def _encrypted(self, quantized, x, mode):
        if self.lied:
            raise RuntimeError("the server lied once")
        try:
            return super()._encrypted(quantized, x, mode)
        except RuntimeError:
            self.lied = True
            raise


@remote_breaks("REM-ANSWER", says="raised EncryptionError: evaluate")
class KeepsAWrongAnswer(reference.RemoteClient):
    """A client that gives the second answer of each module, which may be forged, again at the third call."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.came = {}

    def evaluate(self, model_name, module_name, ciphertext, evaluation, **options):
        came = self.came.setdefault(module_name, [])
        if len(came) == 2:
            return came.pop()
        came.append(super().evaluate(model_name, module_name, ciphertext, evaluation, **options))
        return came[-1]


@remote_breaks("REM-ANSWER-SIZE", says="of an endless answer, all that came: expected 16777216 at most")
class ReadsWhateverComes(reference.RemoteClient):
    def evaluate(self, *args, size=None, **options):
        return super().evaluate(*args, **options)


class Agrees:
    """A digest that equals every other."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    __hash__ = None


class EveryModel(dict):
    """The digests of a server that has whatever it is asked for."""

    def get(self, name, default=None):
        return Agrees()


@remote_breaks("REM-OTHER-MODEL", says="bytes were sent to a server of another model, where a call sends")
class AsksForNoDigests(reference.RemoteClient):
    def digests(self, model_name):
        return EveryModel()


@remote_breaks("REM-OTHER-MODEL", says="at a server of another model, returned Tensor: expected Exception")
class TrustsAnyServer(reference.RemoteModule):
    @property
    def answer_check(self):
        right = super().answer_check
        changed = AnswerCheck(right.vector, right.image, right.tolerance)
        object.__setattr__(changed, "verify", _believe)
        return changed

    def _encrypted(self, quantized, x, mode):
        self.split.served = EveryModel()
        return super()._encrypted(quantized, x, mode)

    @property
    def digest(self):
        self.split.served = EveryModel()
        return super().digest
