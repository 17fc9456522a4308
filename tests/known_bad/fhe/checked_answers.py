"""Known-bad twins of checked answers: wrong answers pass, or keys are used twice."""

from __future__ import annotations

import torch

import reference
from reference.encrypted.answer_check import PRIME, AnswerCheck
from reference.hybrid import BackwardModuleLinear
from tests.baselines.fhe import fhe_breaks

SINGLE = ("float32",)


class Trusting(reference.RemoteModule):
    """A remote module whose check of answers is `checked`."""

    def checked(self, right, q, y):
        raise NotImplementedError

    @property
    def answer_check(self):
        right = super().answer_check
        changed = AnswerCheck(right.vector, right.image, right.tolerance)
        object.__setattr__(changed, "verify", lambda q, y: self.checked(right, q, y))
        return changed


@fhe_breaks("FHE-ANSWER", says="returned Tensor: expected ValueError or RuntimeError", dtypes=SINGLE)
class TrustsEveryAnswer(Trusting):
    def checked(self, right, q, y):
        pass


@fhe_breaks("FHE-ANSWER", says="with an answer off by one in its last element returned Tensor", dtypes=SINGLE)
class ChecksTheFirstRow(Trusting):
    def checked(self, right, q, y):
        right.verify(q[:1], y[:1])


@fhe_breaks("FHE-ANSWER", says="with an answer off in two elements of a row returned Tensor", dtypes=SINGLE)
class ChecksTheSumOfEachRow(Trusting):
    def checked(self, right, q, y):
        ones = torch.ones_like(right.vector)
        AnswerCheck(ones, self.quantized.weight.sum(0) % PRIME).verify(q, y)


@fhe_breaks("FHE-ANSWER", says="with an answer with two rows exchanged returned Tensor", dtypes=SINGLE)
class ChecksTheSumOfAllRows(Trusting):
    def checked(self, right, q, y):
        right.verify(q.sum(0, keepdim=True), y.sum(0, keepdim=True))


@fhe_breaks("FHE-ANSWER", says="the backward product, with a wrong answer returned", dtypes=SINGLE)
class TrustsGradients(Trusting):
    def checked(self, right, q, y):
        if not isinstance(self.private_module, BackwardModuleLinear):
            right.verify(q, y)


@fhe_breaks("FHE-FRESH-KEYS", says="inputs were encrypted under keys that were used before", dtypes=SINGLE)
class UsesItsKeysTwice(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        self.split.backend.fresh_keys = False
        return super()._encrypted(quantized, x, mode)


@fhe_breaks("FHE-FRESH-KEYS", says="ciphertexts came to evaluate again", dtypes=SINGLE)
class KeepsCiphertexts(reference.RemoteModule):
    """A module multiplies its last ciphertext again when the same input comes again."""

    last = None

    def _encrypted(self, quantized, x, mode):
        if self.last is not None and torch.equal(self.last.values, x.values):
            self.split.shared = self.last
            self.last.users.clear()
        found = super()._encrypted(quantized, x, mode)
        self.last = self.split.shared
        return found
