"""Operations on a model as a whole: copies, other models beside it, and its state_dict."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from conformance.clauses.life.model_changes import restored, tie
from conformance.clauses.life.model_situation import ModelOperation, ModelSituation

CLONED = "state = {name: value.clone() for name, value in model.state_dict().items()}"


class Copy(ModelOperation):
    """A copy that takes the model's place; the model it was made of is changed afterwards."""

    def __init__(self, name: str, code: str) -> None:
        self.name, self.code = name, code

    def works(self, life: Any) -> bool:
        if self.name == "deepcopy":
            return True
        both = {"outer": torch.float32, "inner": torch.float32}
        try:
            pickle.dumps(eval(life.built(torch.float32, both), life.names))
        except Exception:  # noqa: BLE001  (MOD-PICKLE judges it)
            return False
        return True

    def act(self, life: Any) -> None:
        life.run(f"original = model\nmodel = {self.code}\ndisturb(original)")
        life.rebind()


class Aside(ModelOperation):
    """A copy that is changed, and unmerged if it is merged, while the model goes on."""

    name, keeps_graph = "copy-aside", True

    def act(self, life: Any) -> None:
        merged = any(truth.merged for truth in life.truth.layers.values())
        unmerge = "target.unmerge_adapters(other)\n" if merged else ""
        life.run(f"other = copy.deepcopy(model)\n{unmerge}disturb(other)")


class Keep(ModelOperation):
    """A copy that stays as it is, and its outputs."""

    name, keeps_graph = "keep-copy", True

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(copied=True)

    def act(self, life: Any) -> None:
        life.inputs()
        life.run(
            "aside, words = copy.deepcopy(model), tokens\n"
            "with torch.no_grad():\n    before = [y.clone() for y in aside(words)]"
        )


class LookBack(ModelOperation):
    """The copy that was set aside: nothing that the model has lived through since may have reached it."""

    name, keeps_graph = "look-back", True

    def fits(self, now: ModelSituation) -> bool:
        return now.copied

    def act(self, life: Any) -> None:
        life.run("with torch.no_grad():\n    after = aside(words)")
        same = "all(torch.equal(one, other) for one, other in zip(before, after))"
        life.require(same, "a copy that was made before gives other outputs than when it was made")


class Sibling(ModelOperation):
    """Another model with adapters of its own, which is merged if the target merges, and lives on."""

    name, keeps_graph = "sibling", True

    def fits(self, now: ModelSituation) -> bool:
        return bool(now.adapted)

    def act(self, life: Any) -> None:
        merge = "\ntarget.merge_adapters(sibling)" if hasattr(life.subject.target, "merge_adapters") else ""
        life.inputs()
        life.run(f"sibling = {life.like}.train()\ndisturb(sibling)\nsibling(tokens){merge}")


class Loading(ModelOperation):
    """A state_dict loaded into the model, which is unmerged from then on.

    A model that is declared to save merged weights loads nothing while it is merged, as in the lives of a layer.
    """

    def available(self, life: Any) -> bool:
        merged = any(truth.merged is not None for truth in life.truth.layers.values())
        return super().available(life) and not (merged and life.subject.follows("merged_state", "merged"))

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(merged=())


class Reload(Loading):
    """The model's own state_dict, loaded again after all adapters have changed."""

    name = "reload"

    def act(self, life: Any) -> None:
        changed = '[kept[name] for name in kept if ".lora_" in name]'
        life.run(f"{CLONED}\nwith torch.no_grad():\n    for tensor in {changed}:\n        tensor.add_(1)")
        life.run("model.load_state_dict(state)")
        restored(life)


class Load(Loading):
    """Another model's state_dict."""

    def __init__(self, name: str, *, assign: bool) -> None:
        self.name, self.assign = name, assign
        self.keeps_graph = assign

    def fits(self, now: ModelSituation) -> bool:
        return not (self.assign and now.tied)  # torch gives each name a Parameter of its own

    def act(self, life: Any) -> None:
        truth = life.truth
        life.run(f"other = {life.like}")
        if truth.tied:
            tie(life, "other")
        life.run("filled = tensors(other)")
        drawn = life.fill(
            *(name for name in truth.tensors() if not (truth.tied and name == "head.weight")), of="filled"
        )
        life.run(f"model.load_state_dict(other.state_dict(){', assign=True' if self.assign else ''})")
        for layer in truth.layers.values():
            layer.merged = None
        for name, values in drawn.items():
            truth.put(name, values)
        if self.assign:
            life.rebind()


class Transfer(Loading):
    """The model's state_dict, loaded into a new model that is adapted alike, which takes its place."""

    name, keeps_graph = "transfer", True

    def act(self, life: Any) -> None:
        truth = life.truth
        life.run(f"{CLONED}\nmodel = {life.like}.train()")
        if truth.tied:
            tie(life)
        life.run("model.load_state_dict(state)")
        life.rebind()
        restored(life)
        truth.train(base=not truth.adapters, adapters=True)
        for layer in truth.layers.values():
            layer.training = True


STATES = (
    Copy("deepcopy", "copy.deepcopy(model)"),
    Copy("pickle", "pickle.loads(pickle.dumps(model))"),
    Aside(),
    Keep(),
    LookBack(),
    Sibling(),
    Reload(),
    Load("load-state", assign=False),
    Load("assign", assign=True),
    Transfer(),
)
