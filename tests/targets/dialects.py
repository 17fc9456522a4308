"""Right LoRA layers with the names and forms that libraries and textbooks give them."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn


class Textbook(nn.Module):
    """The adapter's term alone, from matrices [K, r] and [r, N], times alpha."""

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.randn(in_dim, rank) / math.sqrt(rank))
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.alpha = alpha

    def forward(self, x):
        return self.alpha * (x @ self.A @ self.B)


class TextbookLinear(nn.Module):
    """A linear layer beside the adapter's term."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear
        self.lora = Textbook(linear.in_features, linear.out_features, rank, alpha)

    def forward(self, x):
        return self.linear(x) + self.lora(x)


class Joined(nn.Module):
    """A layer from sizes and further keywords, with bare parameters and dropout before the adapter."""

    def __init__(self, in_features, out_features, r=0, lora_alpha=1, lora_dropout=0.0, **kwargs):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, **kwargs)
        self.lora_A = nn.Parameter(self.linear.weight.new_empty((r, in_features)).normal_())
        self.lora_B = nn.Parameter(self.linear.weight.new_zeros((out_features, r)))
        self.scaling = lora_alpha / r
        self.lora_dropout = nn.Dropout(lora_dropout)

    def train(self, mode=True):  # as loralib's, it returns nothing
        super().train(mode)

    def forward(self, x):
        return self.linear(x) + F.linear(F.linear(self.lora_dropout(x), self.lora_A), self.lora_B) * self.scaling


class Adapters(nn.Module):
    """A layer around another, with its adapters by name, rsLoRA, merging, and dropout after the adapter."""

    def __init__(self, base_layer, adapter_name, r, lora_alpha, lora_dropout=0.0, use_rslora=False, bias="none"):
        super().__init__()
        assert bias == "none"  # here it says which biases are trained
        self.base_layer, self.merged = base_layer, False
        down = nn.Linear(base_layer.in_features, r, bias=False)
        up = nn.Linear(r, base_layer.out_features, bias=False)
        nn.init.zeros_(up.weight)
        self.lora_A, self.lora_B = nn.ModuleDict({adapter_name: down}), nn.ModuleDict({adapter_name: up})
        self.scaling = {adapter_name: lora_alpha / (math.sqrt(r) if use_rslora else r)}
        self.lora_dropout = nn.Dropout(lora_dropout)

    def forward(self, x):
        if self.merged:
            return self.base_layer(x)
        down, up, scaling = self.lora_A["default"], self.lora_B["default"], self.scaling["default"]
        update = up(down(x.to(down.weight.dtype))) * scaling
        base = self.base_layer(x)
        return base + self.lora_dropout(update).to(base.dtype)

    def merge(self):
        self._add(1)

    def unmerge(self):
        self._add(-1)

    def _add(self, sign):
        with torch.no_grad():
            update = self.lora_B["default"].weight @ self.lora_A["default"].weight
            self.base_layer.weight += sign * self.scaling["default"] * update
        self.merged = sign > 0


class Unknown(nn.Module):
    """A layer with an argument that nobody can guess."""

    def __init__(self, linear, rank, alpha, flavour):
        super().__init__()


class Raising(nn.Module):
    """A layer that cannot be built."""

    def __init__(self, linear, rank):
        super().__init__()
        raise RuntimeError(f"no licence for rank {rank}")


class Silent(nn.Module):
    """A layer without an adapter."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear, self.rank = linear, rank


class Twofold(Textbook):
    """A layer with another matrix of the shape of the first."""

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__(in_dim, out_dim, rank, alpha)
        self.gate = nn.Parameter(torch.randn(in_dim, rank))


class Unscaled(nn.Module):
    """A layer for even ranks, without alpha, and with an attribute that is 1 by chance."""

    def __init__(self, in_features, out_features, rank):
        super().__init__()
        assert rank % 2 == 0
        self.uses = 1
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)

    def forward(self, x):
        return self.up(self.down(x))


class Stabilized(TextbookLinear):
    """A layer whose factor is alpha / √r."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha / math.sqrt(rank))


class Odd(TextbookLinear):
    """A layer that computes another formula."""

    def forward(self, x):
        return self.linear(x) + torch.tanh(self.lora(x))


class Rankless(nn.Module):
    """A layer without a rank."""

    def __init__(self, linear, alpha):
        super().__init__()


class Pair(TextbookLinear):
    """A layer that returns its output and its bias."""

    def forward(self, x):
        return super().forward(x), None


class Guarded(nn.Module):
    """A layer that drops between its matrices, runs under no autocast and holds a lambda."""

    def __init__(self, linear, rank, alpha, dropout=0.0):
        super().__init__()
        self.linear, self.scaling = linear, alpha / rank
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        self.drop = nn.Dropout(dropout)
        self.update = lambda x: self.up(self.drop(self.down(x)))

    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("autocast is not supported")
        return self.linear(x) + self.update(x) * self.scaling


class Lenient(nn.Module):
    """A layer for which alpha=0 means alpha=rank, and whose output has the dtype of x under autocast too."""

    def __init__(self, linear, rank, alpha=0):
        super().__init__()
        self.linear, self.scaling = linear, (alpha or rank) / rank
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return (self.linear(x) + self.up(self.down(x)) * self.scaling).to(x.dtype)


@dataclasses.dataclass
class Options:
    """The options of a configured layer."""

    lora_r: int = 4
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    target_modules: tuple[str, ...] = ()

    @property
    def scaling(self):
        return self.lora_alpha / (self.lora_r**0.5 if self.use_rslora else self.lora_r)


class Configured(TextbookLinear):
    """A layer whose options are one object, and that has a name."""

    def __init__(self, module_name, linear, options: Options, weight=None):
        super().__init__(linear, options.lora_r, options.scaling)
        self.options = options
        assert weight is None
        assert module_name
        self.drop = nn.Dropout(options.lora_dropout)

    def forward(self, x):
        return self.linear(x) + self.lora(self.drop(x))


class DimOut(nn.Module):
    """A layer whose input size is called `dim`, and that takes the weight for its dtype."""

    def __init__(self, dim, dim_out, weight, r=8, alpha=None):
        super().__init__()
        self.scale = (r if alpha is None else alpha) / r
        self.A = nn.Parameter(torch.randn(dim, r).to(weight))
        self.B = nn.Parameter(torch.zeros(r, dim_out).to(weight))

    def forward(self, x):
        return x @ self.A @ self.B * self.scale


class HidesTheBase(nn.Module):
    """A layer that keeps its linear layer in a list, as LyCORIS does, so that it is no submodule."""

    def __init__(self, org_module, lora_dim, alpha):
        super().__init__()
        self.org_module, self.scale = [org_module], alpha / lora_dim
        self.down = nn.Linear(org_module.in_features, lora_dim, bias=False)
        self.up = nn.Linear(lora_dim, org_module.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.org_module[0](x) + self.up(self.down(x)) * self.scale


class MergesInEval(nn.Linear):
    """A layer in the manner of loralib, which merges whenever it leaves training."""

    def __init__(self, in_features, out_features, r, lora_alpha=1):
        super().__init__(in_features, out_features)
        self.merged, self.scaling = False, lora_alpha / r
        self.lora_A = nn.Parameter(torch.randn(r, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r))

    def train(self, mode=True):
        if self.merged is mode:
            update = self.scaling * self.lora_B.data @ self.lora_A.data
            self.weight.data = self.weight.data + (-update if mode else update)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        y = super().forward(x)
        return y if self.merged else y + x @ self.lora_A.T @ self.lora_B.T * self.scaling
