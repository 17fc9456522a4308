"""Known-bad twins of loss: the loss is wrong, or is differentiated wrongly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.baselines.training import Step
from tests.baselines.training import step_breaks as breaks


@breaks("TRN-LOSS", says="got 0", dtypes=("float32", "bfloat16"))
class ReturnsNoLoss(Step):
    def returned(self, loss):
        return loss * 0


@breaks("TRN-LOSS", says="worst    loss", dtypes=("float32", "bfloat16"))
class SwapsInputAndLabels(Step):
    def unpack(self, inputs):
        return tuple(reversed(super().unpack(inputs)))


@breaks("TRN-LOSS", says="equality required")
class NegatesTheLoss(Step):
    def loss(self, x, labels):
        return -super().loss(x, labels)


@breaks("TRN-DIVIDE", says="equality required", dtypes=("float32", "bfloat16"))
class ForgetsToDivide(Step):
    def divide(self, loss):
        return loss


@breaks("TRN-DIVIDE", says="worst    loss", dtypes=("float32", "bfloat16"))
class DividesTwice(Step):
    def divide(self, loss):
        return super().divide(super().divide(loss))


@breaks("TRN-DIVIDE", says="gradient of")
class DividesTheReturnedLossOnly(Step):
    def divide(self, loss):
        return loss

    def returned(self, loss):
        return super().divide(loss)


@breaks("TRN-BACKWARD", says="is None", dtypes=("float32", "bfloat16"))
class DoesNotRunBackward(Step):
    def differentiate(self, loss):
        pass


@breaks("TRN-BACKWARD", says="equality required", source="zama-ai/concrete-ml 23cb7dc4d (#765) (GR2)")
class LosesTheBaseGradient(Step):
    def differentiate(self, loss):
        layers = [m for m in self.inference_model.modules() if hasattr(m, "backward_module")]
        for layer in layers:
            layer.backward_module.forward = lambda g, layer=layer: g.new_zeros(*g.shape[:-1], layer.in_features)
        super().differentiate(loss)


@breaks("TRN-BACKWARD", says="equality required")
class DoublesEveryGradient(Step):
    def differentiate(self, loss):
        super().differentiate(2 * loss)


@breaks("TRN-FLOAT", says="error ÷ budget")
class RunsTheModelInBfloat16(Step):
    def run_model(self, x, **labels):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype == torch.float32):
            out = super().run_model(x, **labels)
        return out.to(x.dtype) if isinstance(out, torch.Tensor) else out


@breaks("TRN-REQUIRES-GRAD", says="does not require grad")
class DetachesWhatItReturns(Step):
    def returned(self, loss):
        return loss.detach()


@breaks("TRN-REQUIRES-GRAD", says="by force", source="zama-ai/concrete-ml HEAD: loss.requires_grad_(True)")
class ForcesTheLossToRequireGrad(Step):
    def returned(self, loss):
        return loss.detach().requires_grad_(True)


@breaks("TRN-FROZEN", says="is frozen and got a gradient", source="NVIDIA-NeMo/Automodel 708158fad (FR1)")
class TrainsWhatIsFrozen(Step):
    def differentiate(self, loss):
        super().differentiate(loss)
        for parameter in self.inference_model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@breaks("TRN-FROZEN", says="is frozen and was modified")
class DecaysEveryWeight(Step):
    def finish(self):
        for parameter in self.inference_model.parameters():
            if not parameter.requires_grad:
                parameter.data.mul_(0.5)
        super().finish()


@breaks("TRN-MODEL-LOSS", says="raised", dtypes=("float32", "bfloat16"))
class NeedsALossFunction(Step):
    def loss(self, x, labels):
        return self.loss_fn(self.run_model(x), labels)


@breaks("TRN-MODEL-LOSS", says="equality required", dtypes=("float32", "bfloat16"))
class ComputesItsOwnLoss(Step):
    def loss_of(self, output):
        loss = super().loss_of(output)
        return F.mse_loss(output.logits, torch.zeros_like(output.logits)) if hasattr(output, "logits") else loss


@breaks("TRN-MODEL-LOSS-KINDS", says="raised")
class KnowsObjectsOnly(Step):
    def loss_of(self, output):
        return output.loss


@breaks("TRN-NO-LOSS", says="raised AttributeError")
class StumblesOverNoLoss(Step):
    def loss_of(self, output):
        return output[0] if isinstance(output, tuple) else output["loss"] if isinstance(output, dict) else output.loss


@breaks("TRN-NO-LOSS", says="a named tuple without .loss returned tuple: expected ValueError")
class TakesTheFirstField(Step):
    def loss_of(self, output):
        return output[0] if isinstance(output, tuple) else super().loss_of(output)


@breaks("TRN-NO-LOSS", says="expected 'The model did not return a loss'")
class SaysItOtherwise(Step):
    def loss_of(self, output):
        try:
            return super().loss_of(output)
        except ValueError:
            raise ValueError("no loss; The model did not return a loss") from None


@breaks("TRN-DETACHED", says="returned tuple", source="zama-ai/concrete-ml HEAD: loss.requires_grad_(True)")
class TrainsNothingSilently(Step):
    def differentiate(self, loss):
        (loss if loss.requires_grad else loss.requires_grad_(True)).backward(retain_graph=True)


@breaks("TRN-DETACHED", says="returned tuple")
class AsksTheLossAlone(Step):
    def differentiate(self, loss):
        if not loss.requires_grad:
            raise ValueError("the loss is detached")
        loss.backward()


@breaks("TRN-BATCH", says="has lost or gained entries", source="zama-ai/concrete-ml HEAD: process_inputs (TR9)")
class PopsTheLabels(Step):
    def unpack(self, inputs):
        if isinstance(inputs, dict):
            return inputs, inputs.pop("labels")
        return super().unpack(inputs)


@breaks("TRN-BATCH", says="was modified")
class ScalesTheInputInPlace(Step):
    def unpack(self, inputs):
        x, labels = super().unpack(inputs)
        return (x if isinstance(x, dict) else x.mul_(2)), labels


@breaks("TRN-BATCH", says="was modified")
class MasksTheLabelsInPlace(Step):
    def loss(self, x, labels):
        loss = super().loss(x, labels)
        with torch.no_grad():
            labels.data.zero_()
        return loss


@breaks("TRN-MODULE", says="is not the model it was given")
class CopiesTheModel(Step):
    def __init__(self, inference_model):
        super().__init__(inference_model)
        self.inference_model = nn.Sequential(inference_model)


@breaks("TRN-DOC", says="docstring")
class SaysNothing(Step):
    __doc__ = "One training step."

    def forward(self, inputs):
        return super().forward(inputs)
