"""Operations on a layer as a whole: train and eval, merging, conversion, copies, and its state_dict."""

from __future__ import annotations

import pickle
from typing import Any

from conformance.clauses.life.layer_changes import ADAPTER
from conformance.clauses.life.situation import Operation, Situation
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import dtype_named, numbers

PERTURB = "with torch.no_grad():\n    for parameter in {}.parameters():\n        parameter.add_(1)"
CLONED = "state = {name: value.clone() for name, value in layer.state_dict().items()}"


class Mode(Operation):
    """Training mode or evaluation mode."""

    keeps_graph = True

    def __init__(self, name: str) -> None:
        self.name = name

    def act(self, life: Any) -> None:
        life.run(f"layer.{self.name}()")
        life.truth.training = self.name == "train"


class Merge(Operation):
    """Merging the update into the weight; a merged layer stays as it is."""

    name, needs = "merge", "merge unmerge"

    def fits(self, now: Situation) -> bool:
        return now.base == "plain"

    def effect(self, now: Situation) -> Situation:
        return now.but(merged=True)

    def act(self, life: Any) -> None:
        life.run("layer.merge()")
        life.truth.merge()


class Unmerge(Operation):
    """Restoring the weight from before the merge."""

    name, needs = "unmerge", "merge unmerge"

    def fits(self, now: Situation) -> bool:
        return now.base == "plain"

    def effect(self, now: Situation) -> Situation:
        return now.but(merged=False)

    def act(self, life: Any) -> None:
        life.run("layer.unmerge()")
        restored(life)


def restored(life: Any) -> None:
    """Compare a weight that is unmerged again with the one before the merge, and go on with the layer's."""
    truth = life.truth
    if truth.merged is not None:
        value, limit = truth.values["weight"], truth.unmerged_allowance()
        life.compare("weight", Expected("the weight", value, limit, truth.dtype, certified=False))
        truth.values["weight"], truth.merged = numbers(life.names["weight"]).copy(), None  # float64 shares memory


class Convert(Operation):
    """Conversion to another dtype."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype

    def fits(self, now: Situation) -> bool:
        return not now.regions

    def available(self, life: Any) -> bool:
        declared = getattr(life.subject.target, "CONFORMANCE", {}).get("dtypes", (self.dtype,))
        return self.dtype in declared

    def act(self, life: Any) -> None:
        life.run(f"layer = layer.to(torch.{self.dtype})")
        life.truth.convert(dtype_named(self.dtype))
        if life.now.base != "plain":
            life.rebind("weight")


class Copy(Operation):
    """A copy that takes the layer's place; the layer it was made of is changed afterwards."""

    def __init__(self, name: str, code: str) -> None:
        self.name, self.code = name, code

    def fits(self, now: Situation) -> bool:
        return self.name == "deepcopy" or now.base == "plain"  # torch does not pickle parametrised modules

    def available(self, life: Any) -> bool:
        if self.name == "deepcopy":
            return True
        truth = life.truth
        try:
            pickle.dumps(life.names["build"](truth.dtype, truth.adapter_dtype))
        except Exception:  # noqa: BLE001  (LAY-COPY judges it)
            return False
        return True

    def act(self, life: Any) -> None:
        life.run(f"original = layer\nlayer = {self.code}\n{PERTURB.format('original')}")
        life.rebind()


class Aside(Operation):
    """A copy that is changed, and unmerged if it is merged, while the layer goes on."""

    name, keeps_graph = "copy-aside", True

    def act(self, life: Any) -> None:
        unmerge = "other.unmerge()\n" if life.truth.merged is not None else ""
        life.run(f"other = copy.deepcopy(layer)\n{unmerge}{PERTURB.format('other')}")


class Loading(Operation):
    """A state_dict loaded into the layer: it is unmerged from then on.

    A layer that is declared to save the merged weight loads nothing while it is merged: it could not know what came.
    """

    def available(self, life: Any) -> bool:
        unknown = life.truth.merged is not None and life.subject.follows("merged_state", "merged")
        return super().available(life) and not unknown

    def effect(self, now: Situation) -> Situation:
        return now.but(merged=False)

    def fits(self, now: Situation) -> bool:
        return now.base == "plain" and not now.regions


class Reload(Loading):
    """The layer's own state_dict, loaded again after the adapter has changed."""

    name = "reload"

    def act(self, life: Any) -> None:
        life.run(f"{CLONED}\nwith torch.no_grad():\n    lora_A.add_(1)\n    lora_B.mul_(2)")
        life.run("layer.load_state_dict(state)")
        restored(life)


class Load(Loading):
    """Another layer's state_dict."""

    def __init__(self, name: str, *, assign: bool) -> None:
        self.name, self.assign = name, assign
        self.keeps_graph = assign

    def fits(self, now: Situation) -> bool:
        return super().fits(now.but(regions=()) if self.assign else now)

    def act(self, life: Any) -> None:
        truth = life.truth
        life.run("other = build(dtype, adapter_dtype)", dtype=truth.dtype, adapter_dtype=truth.adapter_dtype)
        for name in truth.values:
            values = life.values(name)
            filled = f'with torch.no_grad():\n    held(other, "{name}").copy_(value)'
            life.run(filled, value=life.tensor(name, values))
            truth.values[name] = values
        option = ", assign=True" if self.assign else ""
        life.run(f"layer.load_state_dict(other.state_dict(){option})")
        truth.merged = None
        if self.assign:
            life.rebind()


class Transfer(Loading):
    """The layer's state_dict, loaded into a new layer, which takes its place."""

    name, keeps_graph = "transfer", True

    def fits(self, now: Situation) -> bool:
        return now.base == "plain"

    def act(self, life: Any) -> None:
        truth = life.truth
        life.run(CLONED)
        built = "layer = build(dtype, adapter_dtype).train()"
        life.run(built, dtype=truth.dtype, adapter_dtype=truth.adapter_dtype)
        life.run("layer.load_state_dict(state)")
        life.rebind()
        restored(life)
        truth.scale, truth.training, truth.sign = life.case.scale, True, 1.0
        truth.trainable = {*ADAPTER} | (truth.trainable & {"x"})


class Meta(Loading):
    """The layer moved to the meta device, given new memory, and loaded."""

    name = "meta"

    def fits(self, now: Situation) -> bool:
        return super().fits(now) and not now.merged

    def act(self, life: Any) -> None:
        life.run(f'{CLONED}\nlayer = layer.to("meta").to_empty(device="cpu")\nlayer.load_state_dict(state)')
        life.rebind()


STATES = (
    Mode("train"),
    Mode("eval"),
    Merge(),
    Unmerge(),
    Convert("to-float64", "float64"),
    Convert("to-float32", "float32"),
    Convert("to-bfloat16", "bfloat16"),
    Copy("deepcopy", "copy.deepcopy(layer)"),
    Copy("pickle", "pickle.loads(pickle.dumps(layer))"),
    Aside(),
    Reload(),
    Load("load", assign=False),
    Load("assign", assign=True),
    Transfer(),
    Meta(),
)
