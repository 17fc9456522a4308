"""Operations on files: a saved adapter, loaded into the model or into a new one."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from conformance.clauses.life.model_changes import restored, tie
from conformance.clauses.life.model_situation import ModelOperation, ModelSituation
from conformance.isolation.memory_folder import in_memory
from conformance.numerics.formats import rounded
from conformance.target.expected_errors import quiet

FILES = "save_adapter load_adapter"


class Save(ModelOperation):
    """The adapters, saved in a new folder.

    Attributes:
        saved: the model that they are saved of, as code.
    """

    name, needs, keeps_graph = "save", FILES, True
    saved = "model"

    def fits(self, now: ModelSituation) -> bool:
        return bool(now.adapted)

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(saved=now.adapted)

    def act(self, life: Any) -> None:
        truth = life.truth
        dtype = next(iter(truth.adapters.values()))
        saved = f"target.save_adapter({self.saved}, config({list(truth.adapted)}, {dtype}), folder)"
        life.run(f"folder = new_folder()\n{saved}")
        truth.saved = {name: truth.tensors()[name].copy() for name in life.tensors_of(tuple(truth.adapters))}
        truth.saved_dtypes = dict(truth.adapters)


class LoadFile(ModelOperation):
    """The saved adapters, loaded into the model, which has adapters in the same layers."""

    name, needs = "load", FILES

    def fits(self, now: ModelSituation) -> bool:
        return now.saved is not None and now.saved == now.adapted

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(merged=())

    def act(self, life: Any) -> None:
        truth = life.truth
        life.run("target.load_adapter(model, folder)")
        restored(life)
        for name, values in truth.saved.items():
            truth.put(name, rounded(values, truth.dtype_of(name)))
        truth.train_adapters_only()


class LoadPlain(ModelOperation):
    """The saved adapters, loaded into a new model without adapters, which takes the model's place."""

    name, needs, keeps_graph = "load-plain", FILES, True

    def fits(self, now: ModelSituation) -> bool:
        return now.saved is not None

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now.but(adapted=now.saved, merged=())

    def works(self, life: Any) -> bool:
        """Whether the target loads into a model without adapters."""
        if not super().works(life):
            return False
        adapted, plain = (life.built(torch.float32, kinds) for kinds in ({"inner": torch.float32}, {}))
        with tempfile.TemporaryDirectory(prefix="loraspec-", dir=in_memory()) as folder, quiet():
            code = f'target.save_adapter({adapted}, config(SETS["inner"], None), folder)\n'
            try:
                exec(f"{code}target.load_adapter({plain}, folder)", {**life.names, "folder": folder})
            except Exception:  # noqa: BLE001  (it may refuse such a model)
                return False
        return True

    def act(self, life: Any) -> None:
        truth = life.truth
        life.run(f"model = {life.built(truth.dtype, {})}.train({truth.training})")
        if truth.tied:
            tie(life)
        life.run("kept = tensors(model)")
        truth.adapters = {}
        for layer in truth.layers.values():
            layer.merged, layer.scale = None, 0.0
        life.fill(*truth.own_tensors())
        life.run("target.load_adapter(model, folder)")
        for chosen, dtype in truth.saved_dtypes.items():
            life.adapt(chosen, dtype)
        for name, values in truth.saved.items():
            truth.put(name, values.copy())
        life.rebind()


FILE_OPERATIONS = (Save(), LoadFile(), LoadPlain())
