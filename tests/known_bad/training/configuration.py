"""Known-bad twins of configuration: LoraTraining reads its arguments or toggles wrongly."""

from __future__ import annotations

from torch import nn

import reference
from tests.baselines.training import Step, trainer_breaks
from tests.baselines.training import step_breaks as breaks


@breaks("TRN-ARGS", says="after training_args as a namespace: expected")
class ReadsDictsOnly(Step):
    def argument(self, args, name, default):
        return args.get(name, default) if isinstance(args, dict) else default


@breaks("TRN-ARGS", says="after training_args as a dict: expected")
class ReadsNamespacesOnly(Step):
    def argument(self, args, name, default):
        return getattr(args, name, default)


@breaks("TRN-ARGS-DEFAULT", says="raised")
class NeedsEveryKey(Step):
    def argument(self, args, name, default):
        if args is None:
            return default
        return args[name] if isinstance(args, dict) else getattr(args, name)


@breaks("TRN-ARGS-DEFAULT", says="expected 1")
class KeepsWhatWasSetBefore(Step):
    def argument(self, args, name, default):
        return super().argument(args, name, getattr(self, name, default))


@breaks("TRN-ARGS-NONE", says="after update_training_parameters()")
class KeepsTheOldOptimiser(Step):
    def update_training_parameters(self, optimizer=None, lr_scheduler=None, loss_fn=None, training_args=None):
        super().update_training_parameters(
            optimizer or getattr(self, "optimizer", None), lr_scheduler, loss_fn, training_args
        )


@breaks("TRN-ARGS-KEPT", says="training_args is")
class PopsItsArguments(Step):
    def argument(self, args, name, default):
        return args.pop(name, default) if isinstance(args, dict) else super().argument(args, name, default)


@breaks("TRN-TOGGLE", says="with run_optimizer off")
class FlipsItsSwitch(Step):
    def toggle_run_optimizer(self, enable=True):
        self.run_optimizer = True


@breaks("TRN-TOGGLE", says="raised TypeError")
class WantsAnArgument(Step):
    def toggle_calibrate(self, enable):
        self.calibrate = enable


@breaks("TRN-TOGGLE", says="at first")
class StepsFromTheStart(Step):
    def __init__(self, inference_model):
        super().__init__(inference_model)
        self.run_optimizer = True


@breaks("TRN-OPTIMISER-KEPT", says="is another Parameter", source="pytorch/torchtune eab21f070 (#1909) (SD5)")
class ExchangesParameters(Step):
    def __init__(self, inference_model):
        super().__init__(inference_model)
        for module in inference_model.modules():
            if hasattr(module, "lora_A") and hasattr(module.lora_A, "weight"):
                module.lora_A.weight = nn.Parameter(module.lora_A.weight.detach().clone())


@trainer_breaks("TRN-ARGS-LOSS", says="loss")
class IgnoresItsLossArgument(reference.LoraTraining):
    def __init__(self, inference_model, *, loss_fn=None, n_layers_to_skip_for_backprop=1):
        super().__init__(inference_model, n_layers_to_skip_for_backprop=n_layers_to_skip_for_backprop)
        self.given = loss_fn


@trainer_breaks("TRN-ARGS-LOSS", says="loss")
class KeepsItsLossArgument(reference.LoraTraining):
    def update_training_parameters(self, optimizer=None, lr_scheduler=None, loss_fn=None, training_args=None):
        kept = getattr(self, "loss_fn", None) or loss_fn
        super().update_training_parameters(optimizer, lr_scheduler, kept, training_args)
