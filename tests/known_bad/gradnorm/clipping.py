"""Known-bad twins of clipping: the norm is right and the clipping is wrong."""

from __future__ import annotations

import torch

from tests.baselines.gradnorm import Right
from tests.known_bad import breaks


@breaks("GRN-CLIP", says="error ÷ budget", source="paiml/entrenar #311")
class SquaresTheNormAgain(Right):
    def factor(self, norm, max_norm):
        return super().factor(norm**2, max_norm)


@breaks("GRN-CLIP", says="constant ratio")
class DoesNotClip(Right):
    def scale(self, gradient, _factor):
        return gradient


@breaks("GRN-CLIP", says="zeros")
class ZeroesWhatItClips(Right):
    def scale(self, gradient, _factor):
        return gradient * 0


@breaks("GRN-CLIP", says="constant ratio -1")
class TurnsGradientsRound(Right):
    def scale(self, gradient, factor):
        return super().scale(gradient, -factor)


@breaks("GRN-CLIP", says="constant ratio 2")
class ClipsToTwiceTheLimit(Right):
    def factor(self, norm, max_norm):
        return super().factor(norm, max_norm) * 2


@breaks("GRN-CLIP", says="error ÷ budget")
class LosesTheSign(Right):
    def scale(self, gradient, factor):
        return super().scale(gradient, factor).abs()


@breaks("GRN-CLIP", says="error ÷ budget")
class ClipsEachTensorAlone(Right):
    def clip(self, chosen, _norm, max_norm):
        for p in chosen:
            super().clip([p], self.norm([p.grad]), max_norm)


@breaks("GRN-CLIP", says="error ÷ budget")
class ClipsTheFirstTensorOnly(Right):
    def clip(self, chosen, norm, max_norm):
        super().clip(chosen[:1], norm, max_norm)


@breaks("GRN-CLIP", says="error ÷ budget")
class ClipsElementByElement(Right):
    def clip(self, chosen, _norm, max_norm):
        for p in chosen:
            p.grad.clamp_(-max_norm, max_norm)


@breaks("GRN-CLIP-MIXED", says="error ÷ budget")
class ClipsEachDtypeAlone(Right):
    def clip(self, chosen, _norm, max_norm):
        for dtype in {p.grad.dtype for p in chosen}:
            alike = [p for p in chosen if p.grad.dtype == dtype]
            super().clip(alike, self.norm([p.grad for p in alike]), max_norm)


@breaks("GRN-CLIP-ULP", says="error ÷ budget", dtypes=("float32",))
class RoundsTheFactorToFloat16(Right):
    def factor(self, norm, max_norm):
        return super().factor(norm, max_norm).half().double()


@breaks("GRN-CLIP-EPS", says="error ÷ budget")
class AddsNothingToTheNorm(Right):
    def factor(self, norm, max_norm):
        return (max_norm / norm).clamp(max=1.0)


@breaks("GRN-CLIP-EPS", says="error ÷ budget")
class AddsTheEpsilonUnderTheRoot(Right):
    def factor(self, norm, max_norm):
        return (max_norm / (norm**2 + 1e-12).sqrt()).clamp(max=1.0)


@breaks("GRN-CLIP-CAP", says="was modified although")
class AmplifiesSmallGradients(Right):
    def factor(self, norm, max_norm):
        return max_norm / (norm + 1e-6)


@breaks("GRN-CLIP-RANGE", says="error ÷ budget", dtypes=("float16",))
class RoundsTheFactorToTheGradientsDtype(Right):
    def scale(self, gradient, factor):
        return gradient * factor.to(gradient.dtype)


@breaks("GRN-CLIP-RANGE", says="zeros", source="NVIDIA-NeMo/Automodel f85d2ba86 (#3136)")
class ClipsByAnOverflowingNorm(Right):
    def factor(self, norm, max_norm):
        return super().factor(norm.float().square().sqrt().double(), max_norm)


@breaks("GRN-BEFORE", says="error ÷ budget")
class ReturnsTheNormAfterClipping(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        parameters = list(parameters)
        super().clip_grad_norm_(parameters, max_norm, error_if_nonfinite)
        return self.grad_norm(parameters)


@breaks("GRN-CLIP-ZERO", says="expected zeros")
class TakesZeroForNoLimit(Right):
    def factor(self, norm, max_norm):
        return super().factor(norm, max_norm or float("inf"))


@breaks("GRN-MANY", says="worst    norm", source="only the tensors of one multi_tensor_apply launch")
class MeasuresTheFirst110(Right):
    def norm(self, gradients):
        return super().norm(gradients[:110])


@breaks("GRN-MANY", says="after clipping", source="only the tensors of one multi_tensor_apply launch")
class ClipsTheFirst110(Right):
    def clip(self, chosen, norm, max_norm):
        super().clip(chosen[:110], norm, max_norm)


@breaks("GRN-CLIP-LARGE", says="after clipping", source="a grid limited to one chunk of 65536 elements")
class ClipsTheFirst65536Elements(Right):
    def scale(self, gradient, factor):
        clipped = super().scale(gradient, factor)
        if clipped.numel() <= 2**16:
            return clipped
        flat = torch.cat([clipped.flatten()[: 2**16], gradient.flatten()[2**16 :]])
        return flat.reshape(gradient.shape)


@breaks("GRN-LAYOUT", says="raised RuntimeError")
class NeedsContiguousGradients(Right):
    def norm(self, gradients):
        return super().norm([g.view(-1) for g in gradients])


@breaks("GRN-LAYOUT", says="error ÷ budget", source="Dao-AILab/flash-attention #355")
class ReadsGradientsAsIfPacked(Right):
    def norm(self, gradients):
        return super().norm([g.as_strided((g.numel(),), (1,)) for g in gradients])
