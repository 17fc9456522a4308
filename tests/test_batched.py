"""Batches of several adapters: right variants pass every clause; errors name what came; second derivatives agree."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import optimized
import reference
from conformance.clauses.batched.batch import Batch, run
from conformance.clauses.batched.case import BatchedCase
from conformance.clauses.batched.oracle import Oracle
from conformance.judgement.judge import judge
from conformance.numerics.budget import Rounding, sums_in_turn
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import MUST, load_all
from conformance.target.target import Target
from optimized.dispatch.batched_node import why_not_batched, why_not_grouped
from optimized.nodes import batched as batched_node
from optimized.sorted_rows import SortedRows
from tests.campaigns.variants.batches import VARIANTS, Grouped

FEW = dataclasses.replace(PROFILES["quick"], volume=3, margin=None, shrinks=0)
NOT_VARIED = ("COMPILE", "REFUSE", "SIDE", "SHRINK", "EXPAND", "SEGMENTS")


def alarms(name: str, thing: Any, dtypes: tuple[str, ...], seed: int, left_out: tuple[str, ...]) -> list[str]:
    """The MUST clauses that a right variant fails."""
    found, target = [], Target.of(thing, name)
    for clause in load_all().values():
        if clause.group != "batched" or clause.level != MUST or any(word in clause.id for word in left_out):
            continue
        for subject, dtype in itertools.product(target.subjects(clause), dtypes):
            if dtype in clause.dtypes:
                result = Examination(clause, subject, dtype, dataclasses.replace(FEW, seed=seed)).run()
                if result.status != "pass":
                    found.append(f"{clause.id} {dtype} {result.status}: {result.case}\n{result.message}")
    return found


@pytest.mark.parametrize(("seed", "name"), list(enumerate(VARIANTS)))
def test_right_variants_pass(seed: int, name: str) -> None:
    found = alarms(name, VARIANTS[name], FLOAT_DTYPES, seed, NOT_VARIED)
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("seed", [6, 37])  # one adapter for nearly all rows
@pytest.mark.parametrize("name", ["gathered", "merged"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_copies_may_be_summed_in_16_bits(name: str, dtype: str, seed: int) -> None:
    case = BatchedCase(seed, dtype, m=33, k=16, n=16, r=4, adapters=3, values="normal", routing="uneven")
    subject = Target.of(VARIANTS[name], name).subject("lora_batched_linear")
    batch = Batch(subject, case)
    instance, oracle = run(subject, batch), Oracle(batch)
    ratios = [judge(instance.gradient(of), oracle.gradient(of)) for of in ("lora_A", "lora_B")]
    assert all(ratio is not None and 0.1 < ratio < 0.7 for ratio in ratios)


def test_sums_in_turn_are_the_average_over_the_orders_of_the_values() -> None:
    values = np.array([3.0, -1.0, 0.5, 2.0, -4.0])
    orders = np.array(list(itertools.permutations(values)))
    for correlated in (False, True):
        how = Rounding(torch.bfloat16, torch.bfloat16, correlated)
        signed = np.abs(orders) if correlated else orders
        average = how.sizes(signed.cumsum(1)).sum(1).mean()
        found = sums_in_turn(how.sizes(values).sum(), how.sizes(values.sum()), len(values), how)
        assert found == pytest.approx(average)


def test_the_grouped_product_passes() -> None:
    left_out = (*NOT_VARIED, "LEAD", "AMP", "MIXED", "BWD", "MEM", "DET", "COUNT", "SPLIT")  # T = 0; its gradients
    found = alarms("grouped", Grouped(), ("float32",), 9, left_out)
    assert not found, "\n\n".join(found)


def operands() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": drawn(5, 8),
        "adapter_index": torch.tensor([0, -1, 2, 0, 1]),
        "weight": drawn(6, 8),
        "bias": None,
        "lora_A": drawn(3, 4, 8),
        "lora_B": drawn(3, 6, 4),
        "scale": torch.tensor([1.0, 2.0, -1.0]),
        "ranks": torch.tensor([4, 2, 0]),
    }


BAD = {
    "adapter_index is torch.float64: expected an integer dtype": {"adapter_index": torch.zeros(5).double()},
    "adapter_index is [4] but x is [5, 8]: it must be [5]": {"adapter_index": torch.zeros(4).long()},
    "adapter_index[2] is 3 but there are 3 adapters: expected -1 (none) to 2": {
        "adapter_index": torch.tensor([0, 0, 3, 0, 0])
    },
    "adapter_index[0] is -2 but": {"adapter_index": torch.tensor([-2, 0, 3, 0, 0])},
    "adapter_index is of type list: expected a tensor of integers": {"adapter_index": [0, 0, 0, 0, 0]},
    "scale is float: expected a floating point tensor [3]": {"scale": 2.0},
    "scale is [2] but there are 3 adapters: it must be [3]": {"scale": torch.ones(2)},
    "ranks is [2] but there are 3 adapters: it must be [3]": {"ranks": torch.tensor([1, 1])},
    "ranks[1] is 5 but lora_A and lora_B are padded to rank 4: expected 0 to 4": {"ranks": torch.tensor([4, 5, 0])},
    "ranks is torch.float32: expected an integer dtype": {"ranks": torch.ones(3)},
    "lora_A is [4, 8]: expected [adapters, rank, in_features]": {"lora_A": torch.ones(4, 8).double()},
    "lora_B is [2, 6, 4] but lora_A is [3, 4, 8]: their first dimensions": {"lora_B": torch.ones(2, 6, 4).double()},
    "each adapter's lora_A is [4, 7] but x has 8 features": {"lora_A": torch.ones(3, 4, 7).double()},
    "weight is None: expected [out_features, in_features]": {"weight": None},
    "bias is [5] but weight is [6, 8]: it must be [6]": {"bias": torch.ones(5).double()},
}


@pytest.mark.parametrize("package", [reference, optimized])
@pytest.mark.parametrize("says", BAD)
def test_bad_input_is_one_clear_error(package: Any, says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        package.lora_batched_linear(**operands() | BAD[says])


SEGMENTS = {
    "segment_ends[1] is 1: expected 2 (where the segment begins) to 5 (all rows)": ([2, 1, 5], [0, 1, 2]),
    "segment_ends[2] is 6: expected 2 (where the segment begins) to 5 (all rows)": ([2, 2, 6], [0, 1, 2]),
    "segment_adapters is [2] but segment_ends is [3]: expected [segments] for both": ([1, 2, 3], [0, 1]),
    "segment_adapters[1] is 3 but there are 3 adapters: expected -1 (none) to 2": ([1, 2, 3], [0, 3, 1]),
}


@pytest.mark.parametrize("says", SEGMENTS)
def test_bad_segments_are_one_clear_error(says: str) -> None:
    given, (ends, adapters) = operands(), map(torch.tensor, SEGMENTS[says])
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        reference.lora_shrink(given["x"], given["lora_A"], ends, adapters)
    S, base = torch.ones(5, 4).double(), torch.ones(5, 6).double()
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        reference.lora_expand(S, base, given["lora_B"], given["scale"], ends, adapters)


def test_operands_of_the_halves_that_do_not_fit_are_errors() -> None:
    given, ends = operands(), torch.tensor([5])
    with pytest.raises(ValueError, match=r"x is \[5, 7\] but lora_A is \[3, 4, 8\]: it must be \[rows, 8\]"):
        reference.lora_shrink(given["x"][:, 1:], given["lora_A"], ends, torch.tensor([0]))
    base, S = torch.ones(5, 5).double(), torch.ones(5, 4).double()
    with pytest.raises(ValueError, match=r"base is \[5, 5\] but S is \[5, 4\] and .*: it must be \[5, 6\]"):
        reference.lora_expand(S, base, given["lora_B"], given["scale"], ends, torch.tensor([0]))


def test_second_derivatives_are_those_of_the_reference() -> None:
    found = []
    for package in (reference, optimized):
        given = operands()
        learns = [given[name].requires_grad_() for name in ("x", "lora_A", "lora_B")]
        y = package.lora_batched_linear(**given)
        first = torch.autograd.grad(y.square().sum(), learns, create_graph=True)
        found.append(torch.autograd.grad(sum(each.square().sum() for each in first), learns))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_reason_for_the_reference_is_said() -> None:
    given = operands()
    assert why_not_batched(given["x"], given["lora_A"]) is None
    with torch.autocast("cpu"):
        assert why_not_batched(given["x"], given["lora_A"]) == "autocast chooses the dtype of each product"


def test_a_bias_that_requires_grad_gets_one() -> None:
    for package in (reference, optimized):
        given = operands() | {"bias": torch.zeros(6, dtype=torch.float64, requires_grad=True)}
        package.lora_batched_linear(**given).sum().backward()
        torch.testing.assert_close(given["bias"].grad, torch.full((6,), 5.0, dtype=torch.float64))


def test_grouped_products_agree_with_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for reason in (None, "asked not to"):
        monkeypatch.setattr(batched_node, "why_not_grouped", lambda *_, reason=reason: reason)
        given = operands()
        given |= {name: given[name].float() for name in ("x", "lora_A")}
        given |= {"weight": torch.ones(8, 8), "lora_B": torch.ones(3, 8, 4), "ranks": None}
        learns = [given[name].requires_grad_() for name in ("x", "lora_A", "lora_B")]
        y = optimized.lora_batched_linear(**given)
        found.append((y.detach(), *torch.autograd.grad(y.square().sum(), learns)))
    for grouped, looped in zip(*found, strict=True):
        torch.testing.assert_close(grouped, looped)


def test_the_reason_for_a_loop_is_said() -> None:
    A, B, index = torch.ones(2, 4, 8), torch.ones(2, 8, 4), torch.tensor([0, 1, -1])
    batch = SortedRows.of(index, [4, 4])
    assert why_not_grouped(batch, torch.float32, A, B) is None
    assert why_not_grouped(SortedRows.of(index, [4, 2]), torch.float32, A, B) == (
        "the grouped product has one rank, and would read beyond the others"
    )
    assert "float32 on a CPU alone" in str(why_not_grouped(batch, torch.float64, A, B))
    assert "packed adapters" in str(why_not_grouped(batch, torch.float32, A.mT.contiguous().mT, B))
    batch = SortedRows.of(index, [3, 3])
    assert "multiples of 16 bytes" in str(why_not_grouped(batch, torch.float32, A[:, :3].contiguous(), B))
