"""Known-bad twins of results: mode remote computes in the wrong place, or returns a wrong product."""

from __future__ import annotations

import reference
from reference import HybridFHEMode as Mode
from reference.encrypted.encryption import ConcreteBackend
from reference.hybrid import BackwardModuleLinear
from tests.baselines.remote import Right, remote_breaks, serve


@remote_breaks("REM-RESULT", says="sent nothing to the server for the forward product")
class ComputesEverythingItself(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        return super()._encrypted(quantized, x, Mode.EXECUTE if quantized.weight is not None else mode)


@remote_breaks("REM-RESULT", says="sent nothing to the server for the backward product")
class ComputesGradientsItself(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        back = isinstance(self.private_module, BackwardModuleLinear)
        return super()._encrypted(quantized, x, Mode.EXECUTE if back else mode)


@remote_breaks("REM-RESULT", says="y of mode remote differs from that of mode disable")
class AddsTheBiasAtBothEnds(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        return y + quantized.bias.to(y.dtype) if mode is Mode.REMOTE and quantized.bias is not None else y


class OffByOne(ConcreteBackend):
    """A backend that adds 1 to one element of the weight."""

    def evaluate(self, ciphertext, weight, evaluation, **options):
        changed = weight.clone()
        changed[0, 0] += 1
        return super().evaluate(ciphertext, changed, evaluation, **options)


def serve_another_weight(model_dir, host="127.0.0.1", port=8000):
    """Serve with `OffByOne`."""
    serve(model_dir, host, port, backend=OffByOne)


@remote_breaks("REM-RESULT", says="raised EncryptionError: evaluate")  # its client checks each answer
class ServesAnotherWeight(Right):
    serve = staticmethod(serve_another_weight)


@remote_breaks("REM-EMPTY", says="raised")
class StumblesOverNothing(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        if not len(x.values):
            raise IndexError("no rows")
        return super()._encrypted(quantized, x, mode)


@remote_breaks("REM-EMPTY", says="shape")
class FlattensNothing(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        last = mode is Mode.REMOTE and self.module_name == "two.forward_module"
        return y if y.numel() or not last else y.new_zeros(0)


@remote_breaks("REM-TRAIN", says="in mode remote differs from that of mode disable")
class RunsTheStepTwice(reference.HybridFHEModel):
    def __call__(self, x, fhe="disable"):
        if fhe == "remote" and isinstance(x, tuple):
            super().__call__(x, fhe)
        return super().__call__(x, fhe)


@remote_breaks("REM-TRAIN", says="in mode remote differs from that of mode disable")
class LosesGradientsOnTheWay(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        return y * 0 if mode is Mode.REMOTE and self.module_name.endswith("backward_module") else y


class LastKeys(ConcreteBackend):
    """A backend that returns the first client's last result to every client."""

    first = None

    def evaluate(self, ciphertext, weight, evaluation, **options):
        result = super().evaluate(ciphertext, weight, evaluation, **options)
        if LastKeys.first is None or LastKeys.first[1] == evaluation:
            LastKeys.first = result, evaluation
        return LastKeys.first[0]


def serve_the_first_client(model_dir, host="127.0.0.1", port=8000):
    """Serve with `LastKeys`."""
    serve(model_dir, host, port, backend=LastKeys)


@remote_breaks("REM-TWO-CLIENTS", says="used by two clients at once raised")
class ServesTheFirstClientsResult(Right):
    serve = staticmethod(serve_the_first_client)


@remote_breaks("REM-TWO-CLIENTS", says="used by two clients at once raised")
class SharesItsResultsWithOthers(reference.RemoteClient):
    results = {}  # noqa: RUF012  (shared by all clients: the defect)

    def evaluate(self, model_name, module_name, ciphertext, evaluation, **options):
        name = self.address, model_name, module_name
        if name not in self.results:
            self.results[name] = super().evaluate(model_name, module_name, ciphertext, evaluation, **options)
        return self.results[name]
