"""Known-bad twins of dropout: masks that rows share, that change before backward, or that act when they must not."""

from __future__ import annotations

import torch

from tests.baselines.experts import Right
from tests.known_bad import breaks


@breaks("EXP-DROP-MASK", says="mask of another row", source="a mask drawn for one row, and broadcast")
class SharesOneMask(Right):
    def masks(self, x, width, p, position, own):
        masks = super().masks(x[:1], width, p, position, own)
        return tuple(None if mask is None else mask.expand(len(x), -1) for mask in masks)


@breaks("EXP-DROP-MASK", says="mask of another row", source="the same seed for the masks of every expert")
class SharesTheMasksOfExperts(Right):
    def masks(self, x, width, p, position, own):
        whole = list(super().masks(x, width, p, position, own))
        for mask in whole:
            for rows in own if mask is not None else ():
                mask[rows] = mask[: len(rows)].clone()
        return tuple(whole)


@breaks("EXP-DROP-MASK", says="dropout had not acted", source="an option that experts ignore")
class IgnoresDropout(Right):
    def masks(self, x, width, p, position, own):
        return None, None


@breaks("EXP-DROP-BWD", says="of the probe", source="masks drawn again in backward, without the seed")
class DrawsOtherMasksInBackward(Right):
    def backward_rows(self, c, g):
        c.mask = tuple(None if mask is None else mask.roll(1, 1) for mask in c.mask)
        return super().backward_rows(c, g)


@breaks("EXP-DROP-BWD", says="dA of the probe", source="a dA that forgets the mask")
class ForgetsTheMaskInDA(Right):
    def backward_rows(self, c, g):
        dx, _, dB = super().backward_rows(c, g)
        c.mask = (None, None)
        return dx, super().backward_rows(c, g)[1], dB


@breaks("EXP-DROP-ALL", says="NaN", source="division by 1-p")
class DividesByZero(Right):
    def output(self, x, p, mask):
        y = super().output(x, p, mask)
        dead = any(m is not None and not bool(m.any()) for m in mask)
        return y + torch.tensor(float("inf")) * 0 if dead else y


@breaks("EXP-DROP-ALL", says="is not 0 with p = 1", source="a backward pass without the mask")
class TrainsWhatIsDropped(Right):
    def backward_rows(self, c, g):
        dx, _, _ = super().backward_rows(c, g)
        c.mask = (None, None)
        return dx, *super().backward_rows(c, g)[1:]


@breaks("EXP-DROP-EVAL", says="worst", source="a flag that is not passed on")
class DropsInEvaluation(Right):
    def lora_grouped_linear(self, *arguments, training=False, **options):
        return super().lora_grouped_linear(*arguments, training=True, **options)
