"""Known-bad twins of the lives of a layer that looks once at flags, modes and hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines.life import LivedLayer
from tests.known_bad.life.registration import twin


@twin("LIFE-LAYER-BWD", says="after", source="an adapter that was frozen once counts as frozen")
class RemembersThatTheAdapterWasFrozen(LivedLayer):
    def operands(self) -> Any:
        W, bias, A, B, scale = super().operands()
        self.kept = self.kept or not A.requires_grad
        return W, bias, A.detach() if self.kept else A, B, scale


@twin("LIFE-LAYER-BWD", says="after", source="a bias that was frozen at the first call")
class RemembersThatTheBiasIsFrozen(LivedLayer):
    def operands(self) -> Any:
        W, bias, A, B, scale = super().operands()
        self.kept = (bias is not None and bias.requires_grad) if self.kept is None else self.kept
        return W, bias if self.kept or bias is None else bias.detach(), A, B, scale


@twin("LIFE-LAYER-BWD", says="dX after", source="a frozen adapter computed under no_grad")
class LosesDXOfAFrozenAdapter(LivedLayer):
    def update(self, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and (A.requires_grad or B.requires_grad)):
            return super().update(x, A, B, scale)


@twin("LIFE-LAYER-BWD", says="after", source="eval() taken for no_grad")
class DoesNotTrainInEval(LivedLayer):
    def update(self, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        return super().update(x, A, B, scale) if self.training else super().update(x, A.detach(), B.detach(), scale)


@twin("LIFE-LAYER-FWD", says="y after", source="dropout replaced by nn.Identity in eval, and not again in train")
class LosesItsDropoutInEval(LivedLayer):
    def train(self, mode: bool = True) -> Any:
        if not mode:
            self.dropout_p = 0.0
        return super().train(mode)


@twin("LIFE-LAYER-FWD", says="y after", source="a fast path of inference that leaves out __call__")
class SkipsHooksInEval(LivedLayer):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return super().__call__(*arguments, **options) if self.training else self.forward(*arguments)


@twin("LIFE-LAYER-FWD", says="after", source="the scale as a thread's own variable")
class KnowsTheScaleInOneThread(LivedLayer):
    def operands(self) -> Any:
        import threading

        *rest, scale = super().operands()
        main = threading.current_thread() is threading.main_thread()
        if self.kept is None:
            self.kept = scale
        return *rest, scale if main else self.kept


@twin("LIFE-LAYER-FWD", says="as if dropout had not acted", source="a layer that forgets its dropout")
class IgnoresDropout(LivedLayer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.dropout_p = 0.0
