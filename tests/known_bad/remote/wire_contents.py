"""Known-bad twins of wire contents: the client sends a secret, an input, or its key too often."""

from __future__ import annotations

import base64
import time

import torch

import reference
from reference import HybridFHEMode as Mode
from tests.baselines.remote import remote_breaks


def tell(client, body):
    """Send unrequested bytes to the server."""
    ask(client, "POST", "/evaluate?model=layers&module=told", content=bytes(body))


def ask(client, method, path, **options):
    """Send a request that the client would not send."""
    client._exchange.ask(method, path, "a further request", 60.0, time.monotonic() + 60.0, **options)


class Telling(reference.RemoteModule):
    """A remote module that sends the bytes of `told` to the server besides the ciphertext."""

    def told(self, quantized, x):
        raise NotImplementedError

    def _encrypted(self, quantized, x, mode):
        if mode is Mode.REMOTE and len(x.values):
            tell(self.split.client, self.told(quantized, x))
        return super()._encrypted(quantized, x, mode)


class TellingModel(reference.HybridFHEModel):
    """A model that sends the bytes of `told` to the server after each call."""

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
            ask(self.split.client, "GET", "/health", headers=headers)
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
    def evaluate(self, model_name, module_name, ciphertext, evaluation, **options):
        ask(self, "PUT", "/keys/" + self._name(evaluation), content=evaluation)
        return super().evaluate(model_name, module_name, ciphertext, evaluation, **options)


@remote_breaks("REM-KEY-ONCE", says="calls had 3 evaluation keys: one is to cross, once")
class MakesKeysForEachProduct(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        self.split.keys = None
        return super()._encrypted(quantized, x, mode)


@remote_breaks("REM-SHARED-INPUTS", says="an input is to cross once")
class EncryptsForEachModule(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        self.split.shared = None
        return super()._encrypted(quantized, x, mode)


@remote_breaks("REM-SHARED-INPUTS", says="an input is to cross once")
class SendsAnInputForEachModule(reference.RemoteModule):
    """The input is encrypted once, and sent with every request."""

    def _answer(self, quantized, rows, block, mode):
        block.sent = False
        return super()._answer(quantized, rows, block, mode)
