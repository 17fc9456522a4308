"""Known-bad twins of resumed noise: the noise of mode simulate starts elsewhere after loading."""

from __future__ import annotations

from tests.baselines.checkpoint import checkpoint_breaks as breaks
from tests.known_bad.checkpoint.resumed_runs import Forgets

RESUMED = "resumed in mode simulate"


def remote(training):
    return [module for module in training.inference_model.modules() if hasattr(module, "noise_position")]


@breaks("CKP-RESUME-NOISE", says=RESUMED)
class ForgetsTheNoise(Forgets):
    def before(self, training):
        return [module.noise_position for module in remote(training)]

    def after(self, training, kept):
        for module, position in zip(remote(training), kept, strict=True):
            module.noise_position = position


@breaks("CKP-RESUME-NOISE", says=RESUMED)
class StartsTheNoiseAgain(Forgets):
    def before(self, training):
        return None

    def after(self, training, kept):
        for module in remote(training):
            module.noise_position = (module.noise_position[0], 0)


@breaks("CKP-RESUME-NOISE", says=RESUMED)
class KeepsTheSeedOfTheNewModel(Forgets):
    def before(self, training):
        return [module.noise_position[0] for module in remote(training)]

    def after(self, training, kept):
        for module, seed in zip(remote(training), kept, strict=True):
            module.noise_position = (seed, module.noise_position[1])
