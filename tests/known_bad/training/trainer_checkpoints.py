"""Known-bad twins of trainer checkpoints: a resumed run counts, continues or chooses wrongly."""

from __future__ import annotations

import torch

import reference
from tests.baselines.training import trainer_breaks as breaks

CONCRETE = "zama-ai/concrete-ml 1.9 LoraTrainer"


@breaks("TRN-TRAINER-RESUME", says="as were finished", source=f"{CONCRETE}: epochs restart at 1")
class BeginsAtEpochOne(reference.LoraTrainer):
    def load_checkpoint(self, path=None):
        folder = super().load_checkpoint(path)
        self.epoch = 0
        return folder


@breaks("TRN-TRAINER-RESUME", says="epochs after a checkpoint of")
class TrainsAllEpochsAgain(reference.LoraTrainer):
    def train(self, train_loader, num_epochs=10, fhe="simulate", device="cpu"):
        super().train(train_loader, self.epoch + num_epochs, fhe, device)


@breaks("TRN-TRAINER-RESUME", says="history has the epochs")
class LosesItsHistory(reference.LoraTrainer):
    def load_checkpoint(self, path=None):
        folder = super().load_checkpoint(path)
        self.history = []
        return folder


@breaks("TRN-TRAINER-RESUME", says="the resumed run beside the uninterrupted one")
class LosesTheOptimisersState(reference.LoraTrainer):
    def load_checkpoint(self, path=None):
        folder = super().load_checkpoint(path)
        self.lora_training_module.optimizer.state.clear()
        return folder


@breaks("TRN-TRAINER-RESUME", says="the resumed run beside the uninterrupted one")
class LosesTheRandomState(reference.LoraTrainer):
    def load_checkpoint(self, path=None):
        before = torch.get_rng_state()
        folder = super().load_checkpoint(path)
        torch.set_rng_state(before)
        return folder


@breaks("TRN-TRAINER-LATEST", says="load_checkpoint() loaded epoch 9", source=f"{CONCRETE}: the order of strings")
class ChoosesByName(reference.LoraTrainer):
    def _latest(self):
        return max(self.checkpoint_dir.glob("epoch-*"), key=lambda folder: folder.name)


@breaks("TRN-TRAINER-LATEST", says="load_checkpoint() loaded epoch 1:")
class ChoosesTheFirst(reference.LoraTrainer):
    def _latest(self):
        return min(self.checkpoint_dir.glob("epoch-*"), key=lambda folder: int(folder.name[6:]))


@breaks("TRN-TRAINER-LATEST", says="after load_checkpoint()")
class CountsWithoutLoading(reference.LoraTrainer):
    """The number of epochs is read, and nothing of the run."""

    def load_checkpoint(self, path=None):
        folder = self._latest() if path is None else path
        self.epoch = int(folder.name[6:])
        return folder
