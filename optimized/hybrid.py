"""A frozen linear layer whose products may run remotely; it is one autograd node if they run locally."""

import torch.nn.functional as F
from torch import Tensor

import reference
from optimized.dispatch.custom_linear import why_not_one_node


class CustomLinear(reference.CustomLinear):
    """`reference.CustomLinear` as PyTorch's own linear node, ``y = x Wᵀ + b`` with ``dX = g W``.

    If `why_not_one_node` gives a reason, both products go through `ForwardBackwardModule`.
    """

    def forward(self, input_tensor: Tensor) -> Tensor:
        """As in the reference."""
        if why_not_one_node(self, input_tensor) is not None:
            return super().forward(input_tensor)
        # detached, so that W and b get no gradient; autograd still detects changes of them
        weight = self.weight.detach()
        bias = None if self.bias is None else self.bias.detach()
        return F.linear(input_tensor, weight.t() if self.weight_transposed else weight, bias)
