"""Tensor parallelism: one layer split over ranks, by columns of y or by features of x."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from conformance.clauses.distributed.data_parallel import LAYERS
from conformance.clauses.distributed.rank_operands import (
    DTYPES,
    RANKS,
    RanksCase,
    cut,
    judge_all,
    oracles,
    parts,
    summed,
)
from conformance.clauses.distributed.ranks import on_ranks
from conformance.clauses.distributed.wrapped_layer import gradients, split, step, whole, wrapped
from conformance.judgement.judge import worst
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Subject

STYLES = ("colwise", "rowwise")
NEEDS = ("colwise_parallel_lora", "rowwise_parallel_lora")
# For each style the dimension along which it cuts each parameter; other parameters are whole on every rank.
CUTS = {"colwise": {"weight": 0, "bias": 0, "lora_B": 0}, "rowwise": {"weight": 1, "lora_A": 1}}


@clause(
    "DIS-COLWISE",
    sentence="""After parallelize_module with colwise_parallel_lora, which splits W, b and B along N, each rank has
    its columns of y, and dX, dA and dB are those of the whole layer, even if the number of ranks does not divide
    N.""",
    cases=RANKS,
    subjects=LAYERS,
    needs=NEEDS,
    dtypes=DTYPES,
    weight=0.25,
)
def test_split_by_columns(subject: Subject, case: RanksCase) -> float | None:
    operands = subject.operands(case)
    columns = cut(case.n, case.world, like_shards=True)

    def work(rank: int) -> dict[str, torch.Tensor]:
        instance = split(subject, operands, "colwise", case.world)
        y = instance.forward()
        upstream = operands.tensor("g")
        assert upstream is not None
        mine = upstream[:, columns[rank]]
        require(y.shape == mine.shape, f"y has shape {list(y.shape)}: expected its columns {list(mine.shape)}")
        torch.autograd.backward([y], [mine.to(y.dtype)])
        return {"y": y.detach().clone(), "x": whole(instance.gradient("x"), "the gradient of x"), **gradients(instance)}

    answers = on_ranks(case.world, work)
    one, each = LinearOracle(operands), oracles(parts(operands, "n", case.world, like_shards=True))
    return worst(
        judge_all(answers, "y", [o.y for o in each]),
        judge_all(answers, "x", [summed("dX", [o.dX for o in each], one.dX)] * case.world),
        judge_all(answers, "lora_A", [summed("dA", [o.dA for o in each], one.dA)] * case.world),
        judge_all(answers, "lora_B", [one.dB] * case.world),
    )


@clause(
    "DIS-ROWWISE",
    sentence="""After parallelize_module with rowwise_parallel_lora, which splits W and A along K, every rank has y,
    dX, dA and dB of the whole layer, even if the number of ranks does not divide K.""",
    cases=RANKS,
    subjects=LAYERS,
    needs=NEEDS,
    dtypes=DTYPES,
    weight=0.25,
)
def test_split_by_features(subject: Subject, case: RanksCase) -> float | None:
    operands = subject.operands(case)
    answers = on_ranks(case.world, lambda _: step(split(subject, operands, "rowwise", case.world)))
    one, each = LinearOracle(operands), oracles(parts(operands, "k", case.world, like_shards=True))
    return worst(
        judge_all(answers, "y", [summed("y", [o.y for o in each], one.y)] * case.world),
        judge_all(answers, "x", [one.dX] * case.world),
        judge_all(answers, "lora_A", [one.dA] * case.world),
        judge_all(answers, "lora_B", [summed("dB", [o.dB for o in each], one.dB)] * case.world),
    )


def possible(subject: Subject, case: RanksCase, plain: str = "fsdp") -> RanksCase:
    """The case with the strategy `plain` in place of a tensor-parallel style, if the target has no such styles."""
    lacks = case.strategy in STYLES and not all(hasattr(subject.target, name) for name in NEEDS)
    return dataclasses.replace(case, strategy=plain) if lacks else case


def styled(subject: Subject, case: RanksCase, rank: int, needs: tuple[str, ...]) -> Any:
    """The layer under the case's strategy: data parallel on this rank's rows, or split over the ranks."""
    operands = subject.operands(case)
    if case.strategy in STYLES:
        return split(subject, operands, case.strategy, case.world, needs)
    return wrapped(subject, parts(operands, "m", case.world)[rank], case.strategy, needs)


@clause(
    "DIS-BIAS",
    sentence="""A trainable bias is added to y once, whether it is whole or split. Its gradient is the mean over ranks
    under data parallelism, and that of the whole layer under tensor parallelism.""",
    why="In a row-wise split each rank would otherwise add the bias to its partial sum.",
    # torch cannot reduce the gradient of a bias of one element that is split into columns, so n is 2 at least
    cases=RANKS.narrowed(bias=(True,), n=(2, 5, 8), strategy=("ddp", "fsdp", "rowwise", "colwise")),
    feature="base_bias",
    subjects=LAYERS,
    dtypes=("float32",),
    weight=0.67,
)
def test_trainable_bias(subject: Subject, case: RanksCase) -> float | None:
    case = possible(subject, case)
    operands = subject.operands(case)
    columns = cut(case.n, case.world, like_shards=True)

    def work(rank: int) -> dict[str, torch.Tensor]:
        instance = styled(subject, case, rank, (*TRAINABLE, "bias"))
        y = instance.forward()
        upstream = instance.operands.tensor("g")
        mine = upstream[:, columns[rank]] if case.strategy == "colwise" else upstream
        require(y.shape == mine.shape, f"y has shape {list(y.shape)}: expected {list(mine.shape)}")
        torch.autograd.backward([y], [mine.to(y.dtype)])
        return {"y": y.detach().clone(), **gradients(instance, ("bias",))}

    answers = on_ranks(case.world, work)
    one = LinearOracle(operands)
    if case.strategy in STYLES:
        axis = "n" if case.strategy == "colwise" else "k"
        each = oracles(parts(operands, axis, case.world, like_shards=True))
        y = [o.y for o in each] if axis == "n" else [summed("y", [o.y for o in each], one.y)] * case.world
        dbias = one.dbias
    else:
        each = oracles(parts(operands, "m", case.world))
        y, dbias = [o.y for o in each], summed("dbias", [o.dbias for o in each], share=1 / case.world)
    return worst(judge_all(answers, "y", y), judge_all(answers, "bias", [dbias] * case.world))


@clause(
    "DIS-SHARE",
    sentence="""A rank holds exactly its shard of every split parameter: of all parameters under fully_shard, of W, b
    and B in a column-wise split, and of W and A in a row-wise split.""",
    why="Sharding is done for memory, which a full copy on every rank does not save.",
    cases=RANKS.narrowed(strategy=(*STYLES, "fsdp"), values=("integers",)),
    subjects=LAYERS,
    dtypes=("float32",),
    weight=0.5,
)
def test_shares(subject: Subject, case: RanksCase) -> None:
    case = possible(subject, case)
    shapes = {"weight": [case.n, case.k], "lora_A": [case.r, case.k], "lora_B": [case.n, case.r]}
    shapes |= {"bias": [case.n]} if case.bias else {}
    cuts = CUTS.get(case.strategy, dict.fromkeys(shapes, 0))

    def work(rank: int) -> dict[str, Any]:
        tensors = styled(subject, case, rank, TRAINABLE).tensors
        return {name: list(getattr(tensors[name], "to_local", lambda t=tensors[name]: t)().shape) for name in shapes}

    for rank, seen in enumerate(on_ranks(case.world, work)):
        for name, shape in shapes.items():
            if name in cuts:
                at = cut(shape[cuts[name]], case.world, like_shards=True)[rank]
                wanted = [*shape[: cuts[name]], at.stop - at.start, *shape[cuts[name] + 1 :]]
                require(
                    seen[name] == wanted,
                    f"rank {rank} of {case.world} holds {seen[name]} of {name} {shape}: expected {wanted}",
                )


@clause(
    "DIS-REPLICAS",
    sentence="A parameter of which every rank holds a copy has the same gradient on every rank, bit for bit.",
    why="Copies with different gradients drift apart.",
    cases=RANKS.narrowed(world=(2, 4), values=("normal",), strategy=("ddp", *STYLES)),
    subjects=LAYERS,
    dtypes=("float32",),
    weight=0.5,
)
def test_replicas(subject: Subject, case: RanksCase) -> None:
    case = possible(subject, case, plain="ddp")

    def work(rank: int) -> dict[str, torch.Tensor]:
        instance = styled(subject, case, rank, TRAINABLE)
        y = instance.forward()
        torch.autograd.backward([y], [torch.ones_like(y)])
        return gradients(instance)

    answers = on_ranks(case.world, work)
    for name in answers[0]:
        for rank, answer in enumerate(answers):
            differ = int((answer[name] != answers[0][name]).sum())
            require(
                differ == 0,
                f"{differ} of {answer[name].numel()} elements of the gradient of {name} on rank {rank} of {case.world} "
                "are not those on rank 0",
            )


@clause(
    "DIS-MERGE",
    sentence="""After merge() the whole weight of a sharded layer is W + scale·B A, and after unmerge() it is W again,
    bit for bit.""",
    cases=RANKS.narrowed(strategy=("fsdp", *STYLES), values=("integers",)),
    subjects=LAYERS,
    needs=("LinearLoRA.merge", "LinearLoRA.unmerge"),
    dtypes=("float32",),
    weight=0.5,
)
def test_merge_in_shards(subject: Subject, case: RanksCase) -> float | None:
    case = possible(subject, case)
    operands = subject.operands(case)

    def work(rank: int) -> dict[str, torch.Tensor]:
        layer = styled(subject, case, rank, TRAINABLE).module
        found = {}
        for call in ("merge", "unmerge"):
            with calling(f"{call}()"):
                getattr(layer, call)()
            found[call] = whole(layer.weight, f"weight after {call}()")
        return found

    answers, values = on_ranks(case.world, work), operands.values
    update = operands.scale * values["lora_B"] @ values["lora_A"]
    terms = {"base": values["weight"], "adapter": update} if update.any() and values["weight"].any() else {}
    merged = Expected("the weight after merge()", values["weight"] + update, None, operands.dtype, terms)
    again = Expected("the weight after unmerge()", values["weight"], None, operands.dtype)
    return worst(
        judge_all(answers, "merge", [merged] * case.world), judge_all(answers, "unmerge", [again] * case.world)
    )
