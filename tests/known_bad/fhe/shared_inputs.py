"""Known-bad twins of shared inputs: an input is encrypted too often, or taken for another one."""

from __future__ import annotations

import reference
from tests.baselines.fhe import fhe_breaks

SINGLE = ("float32",)


@fhe_breaks("FHE-SHARED-INPUTS", says="rows were encrypted for three modules over the same x", dtypes=SINGLE)
class EncryptsForEachModule(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        self.split.shared = None
        return super()._encrypted(quantized, x, mode)


@fhe_breaks("FHE-SHARED-INPUTS", says="the model with fhe='execute' raised", dtypes=SINGLE)
class SharesByShape(reference.RemoteModule):
    """The last encryption serves every input of its shape; the check of answers then refuses the product."""

    def _encrypted(self, quantized, x, mode):
        shared = self.split.shared
        if shared is not None and shared.values.shape == x.values.shape:
            shared.values = x.values
        return super()._encrypted(quantized, x, mode)


@fhe_breaks("FHE-SHARED-INPUTS", says="the results over another x differ", dtypes=SINGLE)
class SharesUnchecked(SharesByShape):
    """The last encryption serves every input of its shape, and answers are not checked."""

    def _answer(self, quantized, rows, block, mode):
        keys, backend = block.keys, self.split.backend
        result = backend.evaluate(block.ciphertext, quantized.weight.cpu(), keys.evaluation)
        return backend.decrypt(result, len(rows), self.out_features, keys), len(block.ciphertext), len(result)


@fhe_breaks("FHE-SHARED-INPUTS", says="the model with fhe='execute' raised", dtypes=SINGLE)
class SharesByTensor(reference.RemoteModule):
    """The last encryption serves the tensor that it was made of, also after a change in place."""

    def _in_integers(self, x, quantized, mode):
        self.is_last = getattr(self.split, "last", None) is x
        self.split.last = x
        return super()._in_integers(x, quantized, mode)

    def _encrypted(self, quantized, x, mode):
        if self.is_last and self.split.shared is not None:
            self.split.shared.values = x.values
        return super()._encrypted(quantized, x, mode)
