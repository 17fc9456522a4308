"""The small model that lives: an embedding, two linear layers and a head, which may be tied to the embedding."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from conformance.clauses.life.life_case import LifeCase
from conformance.specification.features import ABSENT
from conformance.target.signature import takes
from conformance.target.subject import Subject

WORDS = 7  # in the vocabulary
SETS = {"inner": ("up", "down"), "outer": ("head",)}  # the layers that one config adapts
LAYERS = ("up", "down", "head")  # in the order of the forward pass
SET_OF = {layer: name for name, layers in SETS.items() for layer in layers}


class Chain(nn.Module):
    """An embedding and three linear layers, one after the other; a call returns the output of each."""

    def __init__(self, words: int, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """The embeddings, which require grad, and the outputs of the layers; the last is that of the model."""
        embedded = self.embed(tokens)
        outputs = [embedded.requires_grad_() if torch.is_grad_enabled() else embedded]
        for layer in (self.up, self.down, self.head):
            outputs.append(layer(outputs[-1]))
        return outputs


BUILD = '''
def config(layers, dtype, dim={rank}):
    """The config that gives these layers an adapter."""
    return {config}({arguments})


def build(base_dtype, **adapters):
    """A model of one dtype in which some sets of layers are adapted, each in a dtype."""
    model = Chain({words}, {width}, {hidden}, {bias}){built_so}
    model = model.to(base_dtype)
    for name, dtype in adapters.items():
        target.apply_lora_to_linear_modules(model, config(SETS[name], dtype))
    return model


SETS = {sets}


def base(layer):
    """The module that holds the weight of a layer, adapted or not."""
    return layer if "weight" in layer._parameters else layer.base_layer


def adapter(layer, name):
    """lora_A or lora_B of an adapted layer."""
    found = getattr(layer, name)
    return found if isinstance(found, torch.Tensor) else found.weight


def tensors(model):
    """The tensors of a model, by the names of its layers and theirs."""
    found = {{"embed.weight": model.embed.weight}}
    for name in {layers}:
        layer = model.get_submodule(name)
        found |= {{f"{{name}}.{{part}}": base(layer)._parameters.get(part) for part in ("weight", "bias")}}
        if hasattr(layer, "lora_A"):
            found |= {{f"{{name}}.{{part}}": adapter(layer, part) for part in ("lora_A", "lora_B")}}
    return {{name: t for name, t in found.items() if t is not None}}


@torch.no_grad()
def disturb(model):
    """Other values in every parameter."""
    for parameter in model.parameters():
        parameter.add_(1)


def backward(outputs, g):
    """The backward pass; each output keeps its gradient."""
    for output in outputs:
        output.retain_grad()
    outputs[-1].backward(g)


def new_folder():
    """A temporary folder."""
    return tempfile.mkdtemp()
'''


def build_text(subject: Subject, case: LifeCase, options: str = "", built_so: str = "") -> str:
    """The definitions that the code of a life needs, with more options of the config and lines on a new model."""
    alpha = case.scale * case.r
    number = int(alpha) if alpha == int(alpha) else alpha
    arguments = f"target_modules=list(layers), dim=dim, alpha={number}"
    if has_dropout(subject, case):
        arguments += f', dropout={case.dropout}, dropout_position="{subject.dropout_positions[0]}"'
    own = getattr(subject.target, "PeftConfig", None)
    if (own is None or takes(own, "lora_dtype") is not None) and not subject.lacks("adapter_dtype"):
        arguments += ", lora_dtype=dtype"
    arguments += options
    text = BUILD.format(
        config="target.PeftConfig" if own is not None else "reference.PeftConfig",
        arguments=arguments,
        rank=case.r,
        words=WORDS,
        width=case.k,
        hidden=case.n,
        bias=case.bias,
        sets=SETS,
        layers=LAYERS,
        built_so="".join(f"\n    {line}" for line in built_so.splitlines()),
    )
    return f"{inspect.getsource(Chain)}\n\n{text}"


def has_dropout(subject: Subject, case: LifeCase) -> bool:
    """Whether the adapters of a case have dropout."""
    return bool(case.dropout and subject.dropout_positions and not subject.follows("dropout", ABSENT))


def shapes(case: LifeCase) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a model in which every layer is adapted."""
    sizes = {"up": (case.n, case.k), "down": (case.k, case.n), "head": (WORDS, case.k)}
    found: dict[str, Any] = {"embed.weight": (WORDS, case.k)}
    for name, (rows, columns) in sizes.items():
        found |= {f"{name}.weight": (rows, columns), f"{name}.lora_A": (case.r, columns)}
        found |= {f"{name}.lora_B": (rows, case.r), f"{name}.lora_magnitude": (rows,)}
        if case.bias and name in ("up", "down"):
            found[f"{name}.bias"] = (rows,)
    return found
