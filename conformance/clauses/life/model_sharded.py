"""Files of a sharded model in the middle of its life: FSDP2 over one rank, which needs no further process."""

from __future__ import annotations

from typing import Any

import torch

from conformance.clauses.life.life_case import NAMES, LifeCase, LifeSpace
from conformance.clauses.life.model import MODEL_OPERATIONS, MODEL_SIZES, MODEL_START, SUBJECT, lacking_in
from conformance.clauses.life.model_chain import LAYERS
from conformance.clauses.life.model_files import FILES, Save
from conformance.clauses.life.model_judgement import judge_state
from conformance.clauses.life.model_life import ModelLife
from conformance.clauses.life.model_situation import ModelOperation, ModelSituation
from conformance.clauses.life.situation import Operation
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.formats import numbers, rounded
from conformance.specification.clause import clause
from conformance.target.subject import Subject

SHARDED = '''

def sharded(model):
    """A copy of a model, sharded over the one rank of this process."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return fully_shard(copy.deepcopy(model), mesh=init_device_mesh("cpu", (1,)))


def gathered(model):
    """The whole tensors of a sharded model."""
    found = {name: tensor.detach() for name, tensor in tensors(model).items()}
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in found.items()}
'''


class ShardedLife(ModelLife):
    """A model of which sharded copies are made, and the truth about it."""

    def begin(self, setup: str, **names: Any) -> None:
        if torch.distributed.is_initialized():
            raise Inconclusive("a process group exists already")
        super().begin(setup + SHARDED, **names)

    def end(self) -> None:
        super().end()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class SaveSharded(Save):
    """The adapters of a sharded copy of the model, saved in a new folder."""

    name, saved = "save-sharded", "sharded(model)"


class LoadSharded(ModelOperation):
    """The saved adapters, loaded into a sharded copy of the model, which computes and is gathered; the model stays."""

    name, needs, keeps_graph = "load-sharded", FILES, True

    def fits(self, now: ModelSituation) -> bool:
        return now.saved is not None and now.saved == now.adapted

    def act(self, life: Any) -> None:
        life.run("other = sharded(model)\ntarget.load_adapter(other, folder)")
        trained = "[name for name, p in other.named_parameters() if p.requires_grad is not ('lora_' in name)]"
        life.require(f"not {trained}", "not exactly the adapters require grad")
        loaded = life.truth.copy()
        for name, values in loaded.saved.items():
            loaded.put(name, rounded(values, loaded.dtype_of(name)))
        limits = {n: layer.unmerged_allowance() for n, layer in loaded.layers.items() if layer.merged is not None}
        for layer in loaded.layers.values():
            layer.merged = None
        life.run("whole = gathered(other)")
        for name, values in loaded.tensors().items():
            layer, _, part = name.partition(".")
            limit = limits.get(layer) if part == "weight" else None
            expected = Expected(f"{name} of the sharded model", values, limit, loaded.dtype_of(name), certified=False)
            life.compare(f'whole["{name}"]', expected)
            loaded.put(name, numbers(life.names["whole"][name]).copy())
        life.decided(lambda: self._judge_outputs(life, loaded))

    @staticmethod
    def _judge_outputs(life: Any, loaded: Any) -> None:
        life.inputs()
        life.run("with torch.no_grad():\n    outputs = other(tokens)")
        outputs = life.arrays("outputs")
        for i, layer in enumerate(LAYERS, 1):
            (results,) = loaded.results(layer, outputs[i - 1], outputs[i])
            life.compare(f"outputs[{i}]", results.of("y"))


FIRST = ("apply-inner", "apply-outer", "merge")  # the first lives have these, and what follows them
OTHERS = ("save", "load", "step", "thaw", "tie", "untie", "unmerge", "to-bfloat16", "deepcopy")
SHARDED_OPERATIONS: dict[str, Operation] = {
    **{name: MODEL_OPERATIONS[name] for name in FIRST},
    **{operation.name: operation for operation in (SaveSharded(), LoadSharded())},
    **{name: MODEL_OPERATIONS[name] for name in OTHERS},
}
NAMES += [SaveSharded.name, LoadSharded.name]


@clause(
    "LIFE-MODEL-SHARDED",
    sentence="""Whatever a model has lived through, its adapters can be saved while it is sharded by fully_shard, and
    such a file, or that of the whole model, loads into a sharded model, which then computes with these adapters and
    holds the unmerged weights; exactly the adapters require grad.""",
    cases=LifeSpace(SHARDED_OPERATIONS, MODEL_START, lacking_in(SHARDED_OPERATIONS, ShardedLife), **MODEL_SIZES),
    dtypes=("float64",),
    subjects=SUBJECT,
    needs=("save_adapter", "load_adapter"),
    level="SHOULD",  # a library may gather a model before it saves it
    weight=1.0,
)
def test_life_of_a_sharded_model(subject: Subject, case: LifeCase) -> float | None:
    return ShardedLife(subject, case, MODEL_START).live(SHARDED_OPERATIONS, judge_state)
