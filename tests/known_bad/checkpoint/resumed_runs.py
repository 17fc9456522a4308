"""Known-bad twins of resumed runs: a resumed training run loses a part of its state."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path

import numpy as np
import torch

import reference
from tests.baselines.checkpoint import Right, trained_tensors, unpickled
from tests.baselines.checkpoint import checkpoint_breaks as breaks


class Forgets(Right):
    """Loading a run restores a part of the state from before the load."""

    def before(self, training):
        raise NotImplementedError

    def after(self, training, kept):
        raise NotImplementedError

    def load_training(self, training, path):
        kept = self.before(training)
        step = super().load_training(training, path)
        self.after(training, kept)
        return step


@breaks("CKP-RESUME", says="of the optimiser's parameter")
class ForgetsTheOptimiser(Forgets):
    def before(self, training):
        return copy.deepcopy(training.optimizer.state_dict())

    def after(self, training, kept):
        training.optimizer.load_state_dict(kept)


@breaks("CKP-RESUME", says="resumed: ")
class ForgetsTheScheduler(Forgets):
    def before(self, training):
        return training.lr_scheduler and copy.deepcopy(training.lr_scheduler.state_dict())

    def after(self, training, kept):
        if kept:
            training.lr_scheduler.load_state_dict(kept)


@breaks("CKP-RESUME", says="loaded: the gradient of")
class ForgetsGradients(Forgets):
    def before(self, training):
        return None

    def after(self, training, kept):
        training.inference_model.zero_grad()


@breaks("CKP-RESUME", says="loaded: norm.")
class ForgetsBuffers(Forgets):
    def before(self, training):
        return {name: b.clone() for name, b in training.inference_model.named_buffers()}

    def after(self, training, kept):
        for name, buffer in training.inference_model.named_buffers():
            buffer.copy_(kept[name])


@breaks("CKP-RESUME", says="resumed: ")
class ForgetsRandomNumbers(Forgets):
    def before(self, training):
        return torch.get_rng_state()

    def after(self, training, kept):
        torch.set_rng_state(kept)


@breaks("CKP-RESUME", says="resumed: ", source="modelscope/ms-swift #9935")
class SeedsAgainAfterLoading(Right):
    def load_training(self, training, path):
        step = super().load_training(training, path)
        torch.manual_seed(0)
        return step


@breaks("CKP-RESUME", says="loaded: ", dtypes=("float32",))
class SavesRunsInBfloat16(Right):
    def load_training(self, training, path):
        step = super().load_training(training, path)
        for parameter in trained_tensors(training.inference_model).values():
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)
        return step


@breaks("CKP-RESUME-STEP", says="load_training returned")
class CountsFromZero(Right):
    def load_training(self, training, path):
        super().load_training(training, path)
        return 0


@breaks("CKP-RESUME-RANDOM", says="NumPy draws")
class RestoresTorchOnly(Forgets):
    def before(self, training):
        return np.random.get_state(), random.getstate()

    def after(self, training, kept):
        np.random.set_state(kept[0])
        random.setstate(kept[1])


@breaks("CKP-RESUME-RANDOM", says="Python draws")
class ForgetsPythonsReserve(Forgets):
    def before(self, training):
        return None

    def after(self, training, kept):
        version, state, _ = random.getstate()
        random.setstate((version, state, None))


@breaks("CKP-RESUME-EFFECTS", says="after save_training: the gradient of")
class ZeroesGradientsBeforeSaving(Right):
    def save_training(self, training, path, step=0):
        training.inference_model.zero_grad()
        super().save_training(training, path, step)


@breaks("CKP-RESUME-EFFECTS", says="changed torch's random state")
class DrawsWhileSaving(Right):
    def save_training(self, training, path, step=0):
        super().save_training(training, path, step)
        torch.rand(1)


@breaks("CKP-RESUME-SWITCHES", says="after loading: expected")
class ForgetsSwitches(Forgets):
    def before(self, training):
        return training.run_optimizer, training.calibrate

    def after(self, training, kept):
        training.run_optimizer, training.calibrate = kept


@breaks("CKP-RESUME-SWITCHES", says="gradient_accumulation_steps is")
class ForgetsTheWindow(Forgets):
    def before(self, training):
        return training.gradient_accumulation_steps

    def after(self, training, kept):
        training.gradient_accumulation_steps = kept


@breaks("CKP-RESUME-REFUSED", says="load_training refused")
class LoadsBeforeItChecks(Right):
    def load_training(self, training, path):
        for parameter in trained_tensors(training.inference_model).values():
            parameter.data.zero_()
        return super().load_training(training, path)


@breaks("CKP-RESUME-REFUSED", says="raised None: expected an error")
class StartsAnewWhereItCannotLoad(Right):
    def load_training(self, training, path):
        try:
            return super().load_training(training, path)
        except ValueError:
            return 0


@breaks("CKP-RESUME-REFUSED", says="and changed torch's random state")
class RestoresRandomNumbersFirst(Right):
    def load_training(self, training, path):
        state = torch.get_rng_state()
        torch.manual_seed(0)
        step = super().load_training(training, path)
        del state
        return step


class RunsInPlace(Right):
    """The save writes to the run's final file without a temporary one."""

    def save_training(self, training, path, step=0):
        file = Path(path) / "training.safetensors"
        if not file.exists():
            super().save_training(training, path, step)
            return
        elsewhere = Path(path) / "elsewhere"
        file.write_bytes(b"")
        try:
            super().save_training(training, elsewhere, step)
            file.write_bytes((elsewhere / file.name).read_bytes())
        finally:
            for left in elsewhere.iterdir():
                left.unlink()
            elsewhere.rmdir()


breaks("CKP-RESUME-WHOLE", says="is no longer what it was before a save that failed")(RunsInPlace)


class Pickles(Right):
    """A run is saved by torch.save, which uses pickle."""

    def save_training(self, training, path, step=0):
        state = {"step": step, "model": training.inference_model.state_dict()}
        Path(path, "training.pkl").write_bytes(pickle.dumps(state))

    def load_training(self, training, path):
        state = unpickled(Path(path, "training.pkl"))
        training.inference_model.load_state_dict(state["model"])
        return state["step"]


breaks("CKP-RESUME-FORMAT", says="is neither JSON nor safetensors")(Pickles)


@breaks("CKP-RESUME-FORMAT", says="has other bytes")
class CountsItsSaves(Right):
    saves = 0

    def save_training(self, training, path, step=0):
        super().save_training(training, path, step)
        CountsItsSaves.saves += 1
        Path(path, "about.json").write_text(json.dumps({"saves": self.saves}))


@breaks("CKP-RESUME-STEP", says="load_training returned 0: expected")
class LosesTheStep(Right):
    def save_training(self, training, path, step=0):
        reference.save_training(training, path)


@breaks("CKP-RESUME", says="of the optimiser's parameter", source="NVIDIA-NeMo/labs-molt #57, in review")
class RestoresOnlyWhatAFreshOptimiserHolds(Right):
    def load_training(self, training, path):
        fresh = not training.optimizer.state
        step = super().load_training(training, path)
        if fresh:
            training.optimizer.state.clear()
        return step
