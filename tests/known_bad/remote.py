"""Known-bad twins of group `remote`: what comes back, what crosses the wire, what stays, and what goes wrong."""

from __future__ import annotations

import base64
import time

import torch

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
    """Evaluates another product."""

    def evaluate(self, ciphertext, weight, evaluation, **options):
        changed = weight.clone()
        changed[0, 0] += 1
        return super().evaluate(ciphertext, changed, evaluation, **options)


def serve_another_weight(model_dir, host="127.0.0.1", port=8000):
    """Serve a weight that differs by one unit."""
    serve(model_dir, host, port, backend=OffByOne)


@remote_breaks("REM-RESULT", says="y of mode remote differs from that of mode disable")
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
    """Evaluates with the first evaluation key that came."""

    first = None

    def evaluate(self, ciphertext, weight, evaluation, **options):
        result = super().evaluate(ciphertext, weight, evaluation, **options)
        if LastKeys.first is None or LastKeys.first[1] == evaluation:
            LastKeys.first = result, evaluation
        return LastKeys.first[0]


def serve_the_first_client(model_dir, host="127.0.0.1", port=8000):
    """Give every client the last result of the first."""
    serve(model_dir, host, port, backend=LastKeys)


@remote_breaks("REM-TWO-CLIENTS", says="used by two clients at once raised")
class ServesTheFirstClientsResult(Right):
    serve = staticmethod(serve_the_first_client)


@remote_breaks("REM-TWO-CLIENTS", says="used by two clients at once raised")
class SharesItsResultsWithOthers(reference.RemoteClient):
    results = {}  # noqa: RUF012  (of all clients: the defect)

    def evaluate(self, model_name, module_name, ciphertext, evaluation):
        name = self.address, model_name, module_name
        if name not in self.results:
            self.results[name] = super().evaluate(model_name, module_name, ciphertext, evaluation)
        return self.results[name]


class Telling(reference.RemoteModule):
    """Tells the server something besides the ciphertext."""

    def told(self, quantized, x):
        raise NotImplementedError

    def _encrypted(self, quantized, x, mode):
        if mode is Mode.REMOTE and len(x.values):
            tell(self.split.client, self.told(quantized, x))
        return super()._encrypted(quantized, x, mode)


def tell(client, body):
    """Send bytes that nobody asked for."""
    client._ask("POST", "/evaluate?model=layers&module=told", "telling", 60.0, bytes(body))


class TellingModel(reference.HybridFHEModel):
    """The same of a model."""

    def told(self, x):
        raise NotImplementedError

    def __call__(self, x, fhe="disable"):
        y = super().__call__(x, fhe)
        if fhe == "remote" and isinstance(x, tuple):
            tell(self._split.client, self.told(x))
        return y


@remote_breaks("REM-TRAFFIC", says="an activation crosses the wire: a row quantised, as <i8")
class SendsPlaintextRows(Telling):
    def told(self, quantized, x):
        return x.values.numpy().tobytes()


@remote_breaks("REM-TRAFFIC", says="crosses the wire: a row quantised, as text")
class SendsPlaintextAsText(Telling):
    def told(self, quantized, x):
        return str(x.values.tolist()).encode()


@remote_breaks("REM-TRAFFIC", says="the bias crosses the wire: decimal text")
class SendsTheBiasInAHeader(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        if mode is Mode.REMOTE and quantized.bias is not None:
            headers = {"X-Bias": " ".join(map(str, quantized.bias.tolist()))}
            self.split.client._ask("GET", "/health", "health", 60.0, headers=headers)
        return super()._encrypted(quantized, x, mode)


@remote_breaks("REM-TRAFFIC", says="a label crosses the wire: 2 neighbours as torch.float32")
class SendsTheLabels(TellingModel):
    def told(self, x):
        return x[1].numpy().tobytes()


@remote_breaks("REM-TRAFFIC", says="the adapter inner.lora_A.weight crosses the wire: 4 neighbours as torch.bfloat16")
class SendsAnAdapterInBase64(TellingModel):
    def told(self, x):
        adapter = next(p for name, p in self.model.named_parameters() if "lora_A" in name)
        return base64.b64encode(adapter.detach().bfloat16().view(torch.uint8).numpy().tobytes())


@remote_breaks("REM-TRAFFIC", says="a gradient crosses the wire: 2 neighbours as torch.float32")
class SendsGradients(TellingModel):
    def __call__(self, x, fhe="disable"):
        seen = []
        outer = self.model.get_submodule("inference_model.outer") if fhe == "remote" else self.model

        def listen(_, given):
            if fhe == "remote":
                given[0].register_hook(seen.append)

        hook, self.seen = outer.register_forward_pre_hook(listen), seen
        try:
            return super().__call__(x, fhe)
        finally:
            hook.remove()

    def told(self, x):
        return self.seen[0].contiguous().numpy().tobytes()


@remote_breaks("REM-TRAFFIC", says="the secret key crosses the wire")
class SendsTheSecretKey(TellingModel):
    def told(self, x):
        return self.keys.secret


@remote_breaks("REM-KEY-ONCE", says="the evaluation key is to cross once")
class SendsTheKeyWithEachRequest(reference.RemoteClient):
    def evaluate(self, model_name, module_name, ciphertext, evaluation):
        self._ask("PUT", "/keys/" + self._name(evaluation), "upload", 60.0, evaluation)
        return super().evaluate(model_name, module_name, ciphertext, evaluation)


@remote_breaks("REM-KEY-ONCE", says="calls had 3 evaluation keys: one is to cross, once")
class MakesKeysForEachProduct(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        self.split.keys = None
        return super()._encrypted(quantized, x, mode)


class Keeping(reference.RemoteModule):
    """Keeps something of the weight when it is cleared."""

    kept = None

    def keep(self):
        raise NotImplementedError

    def clear(self):
        object.__setattr__(self, "kept", self.keep())
        super().clear()


@remote_breaks("REM-CLEARED", says="a Tensor holds a row of one's weight as torch.float32")
class KeepsTheWeightInAList(Keeping):
    def keep(self):
        return [self.private_module.weight.detach().clone()]


@remote_breaks("REM-CLEARED", says="of one's weight, quantised, as int8")
class KeepsTheQuantizedWeight(Keeping):
    def keep(self):
        return {"weight": self.quantized.weight.to(torch.int8).numpy().copy()}


@remote_breaks("REM-CLEARED", says="a bytes holds a row of one's weight as torch.bfloat16")
class KeepsTheWeightAsBytes(Keeping):
    def keep(self):
        return [self.private_module.weight.detach().bfloat16().view(torch.uint8).numpy().tobytes()]


@remote_breaks("REM-CLEARED", says="mode simulate after clearing returned Tensor")
class SimulatesWithoutAWeight(reference.HybridFHEModel):
    def __call__(self, x, fhe="disable"):
        if fhe == "simulate" and any(module.private_module is None for module in self.remote_modules.values()):
            return x.clone()
        return super().__call__(x, fhe)


@remote_breaks("REM-DOWN", says="returned Tensor: expected an error")
class AnswersZerosForADeadServer(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        try:
            return super()._encrypted(quantized, x, mode)
        except reference.RemoteError:
            return torch.zeros(len(x.values), self.out_features, dtype=torch.int64)


@remote_breaks("REM-DOWN", says="does not name")
class HidesTheAddress(reference.RemoteClient):
    def evaluate(self, model_name, module_name, ciphertext, evaluation):
        try:
            return super().evaluate(model_name, module_name, ciphertext, evaluation)
        except reference.RemoteError:
            raise RuntimeError("the server did not answer") from None


@remote_breaks("REM-DOWN", says="it does not name 127.0.0.1:")
class NamesThePortAlone(reference.RemoteClient):
    def evaluate(self, model_name, module_name, ciphertext, evaluation):
        try:
            return super().evaluate(model_name, module_name, ciphertext, evaluation)
        except reference.RemoteError as error:
            raise reference.RemoteError(str(error).replace("127.0.0.1", "the server")) from None


@remote_breaks("REM-DOWN", says="expected RemoteError")
class RaisesWhatTheLibraryRaises(reference.RemoteClient):
    def evaluate(self, model_name, module_name, ciphertext, evaluation):
        try:
            return super().evaluate(model_name, module_name, ciphertext, evaluation)
        except reference.RemoteError as error:
            raise ConnectionError(str(error)) from None


@remote_breaks("REM-DOWN", says="does not end within")
class TriesForEver(reference.RemoteClient):
    def evaluate(self, model_name, module_name, ciphertext, evaluation):
        for _ in range(300):  # as good as for ever
            try:
                return super().evaluate(model_name, module_name, ciphertext, evaluation)
            except reference.RemoteError:
                time.sleep(0.1)
        raise AssertionError


@remote_breaks("REM-DOWN", says="the model with fhe='remote' raised RuntimeError: the server was down")
class GivesUpForGood(reference.RemoteClient):
    lost = False

    def evaluate(self, model_name, module_name, ciphertext, evaluation):
        if self.lost:
            raise RuntimeError("the server was down")
        try:
            return super().evaluate(model_name, module_name, ciphertext, evaluation)
        except reference.RemoteError:
            self.lost = True
            raise
