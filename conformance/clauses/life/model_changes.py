"""Operations that change a model: further adapters, frozen parameters, ties, merging, dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from conformance.clauses.life.model_chain import SETS
from conformance.clauses.life.model_situation import ModelOperation, ModelSituation
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import dtype_named, numbers
from conformance.specification.features import ABSENT


class Apply(ModelOperation):
    """Adapters in one set of layers; the other set may have some already. Then new values in lora_A and lora_B."""

    def __init__(self, chosen: str) -> None:
        self.chosen, self.name = chosen, f"apply-{chosen}"

    def fits(self, now: ModelSituation) -> bool:
        return self.chosen not in now.adapted

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(adapted=tuple(sorted((*now.adapted, self.chosen))))

    def available(self, life: Any) -> bool:
        """Whether the target takes this config, which may be a second one."""
        return super().available(life) and not (life.now.adapted and life.subject.follows("second_config", ABSENT))

    def act(self, life: Any) -> None:
        dtype = life.adapter_dtype
        call = f'count = target.apply_lora_to_linear_modules(model, config(SETS["{self.chosen}"], adapter_dtype))'
        life.run(f"{call}\nheld = tensors(model)", adapter_dtype=dtype)
        found, number = life.names["count"], len(SETS[self.chosen])
        life.require(f"count == {number}", f"apply_lora_to_linear_modules returned {found!r}: expected {number}")
        same = "all(held[name] is kept[name] for name in kept)"
        life.require(same, "a tensor from before is another Parameter: an optimiser would go on training that one")
        life.adapt(self.chosen, dtype)
        life.rebind()
        fresh = life.tensors_of((self.chosen,))
        ups = [name for name in fresh if name.endswith("B")]
        life.require(f"not any(kept[name].any() for name in {ups})", "a new lora_B is not zero")
        life.fill(*fresh)


class Freeze(ModelOperation):
    """requires_grad_ of the whole model."""

    def __init__(self, name: str, *, grad: bool) -> None:
        self.name, self.grad = name, grad

    def act(self, life: Any) -> None:
        life.run(f"model.requires_grad_({self.grad})")
        life.truth.train(base=self.grad, adapters=self.grad)


class Fill(ModelOperation):
    """New values in the embedding, written in place; a tied head has them too."""

    name = "fill"

    def act(self, life: Any) -> None:
        life.fill("embed.weight")


class Tie(ModelOperation):
    """The head gets the embedding's weight, as tie_weights of transformers does."""

    name = "tie"

    def fits(self, now: ModelSituation) -> bool:
        return not now.tied and "outer" not in now.merged

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(tied=True)

    def works(self, life: Any) -> bool:
        life.names["sample"] = eval(life.built(torch.float32, {"outer": torch.float32}), life.names)
        return isinstance(life.names["base"](life.names["sample"].head)._parameters.get("weight"), nn.Parameter)

    def act(self, life: Any) -> None:
        tie(life)
        life.run("kept = tensors(model)")
        head, grad = life.truth.layers["head"], life.truth.embedding_trains
        head.values["weight"] = life.truth.embedding
        head.trainable = (head.trainable - {"weight"}) | ({"weight"} if grad else set())
        life.truth.tied = True


def tie(life: Any, model: str = "model") -> None:
    """Let the head of a model have the embedding's weight."""
    life.run(f"base({model}.head).weight = {model}.embed.weight")


class Untie(ModelOperation):
    """The head gets a weight of its own."""

    name = "untie"

    def fits(self, now: ModelSituation) -> bool:
        return now.tied

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(tied=False)

    def act(self, life: Any) -> None:
        grad = life.truth.embedding_trains
        life.run(f"base(model.head).weight = nn.Parameter(model.embed.weight.detach().clone(), requires_grad={grad})")
        life.run("kept = tensors(model)")
        life.truth.tied = False
        life.fill("head.weight")


class Merge(ModelOperation):
    """Merging all adapters; merged layers stay as they are. A tied head cannot be merged."""

    name, needs = "merge", "merge_adapters unmerge_adapters"

    def fits(self, now: ModelSituation) -> bool:
        return bool(now.adapted) and not (now.tied and "outer" in now.adapted)

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(merged=now.adapted)

    def act(self, life: Any) -> None:
        life.run("target.merge_adapters(model)")
        for layer in life.truth.adapted:
            if life.truth.layers[layer].merged is None:
                life.truth.layers[layer].merge()


class Unmerge(ModelOperation):
    """Restoring the weights from before the merge."""

    name, needs = "unmerge", "merge_adapters unmerge_adapters"

    def fits(self, now: ModelSituation) -> bool:
        return bool(now.adapted)

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(merged=())

    def act(self, life: Any) -> None:
        life.run("target.unmerge_adapters(model)")
        restored(life)


def restored(life: Any) -> None:
    """Compare weights that are unmerged again with those before the merge, and go on with the model's."""
    for layer, truth in life.truth.layers.items():
        if truth.merged is not None:
            value, limit, name = truth.values["weight"], truth.unmerged_allowance(), f"{layer}.weight"
            text = life.matrix(f'kept["{name}"]', name)
            life.compare(text, Expected(f"the weight of {layer}", value, limit, truth.dtype, certified=False))
            truth.values["weight"] = numbers(life.value(text).detach()).copy()
            truth.merged = None


class Convert(ModelOperation):
    """Conversion to another dtype."""

    def __init__(self, dtype: str) -> None:
        self.name, self.dtype = f"to-{dtype}", dtype

    def works(self, life: Any) -> bool:
        declared = getattr(life.subject.target, "CONFORMANCE", {}).get("dtypes", (self.dtype,))
        return self.dtype in declared

    def act(self, life: Any) -> None:
        life.run(f"model = model.to(torch.{self.dtype})")
        life.truth.convert(dtype_named(self.dtype))
        if life.truth.tied:
            life.truth.layers["head"].values["weight"] = life.truth.embedding


CHANGES = (
    *map(Apply, SETS),
    Freeze("freeze", grad=False),
    Freeze("thaw", grad=True),
    Fill(),
    Tie(),
    Untie(),
    Merge(),
    Unmerge(),
    *map(Convert, ("float32", "bfloat16")),
)
