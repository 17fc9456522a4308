"""Right but different implementations by name; each must pass every clause in every dtype."""

from __future__ import annotations

from tests.baselines.linear import Right
from tests.campaigns.variants import formulas, products
from tests.campaigns.variants.products import ProductsBy

VARIANTS: dict[str, Right] = {
    "right": Right(),
    "scales x": formulas.ScalesX(),
    "scales A": formulas.ScalesA(),
    "scales B": formulas.ScalesB(),
    "scales last": formulas.ScalesLast(),
    "scales g": formulas.ScalesG(),
    "base last": formulas.AddsTheBaseLast(),
    "bias last": formulas.AddsTheBiasLast(),
    "in place": formulas.AddsInPlace(),
    "addmm": formulas.AddsInto(),
    "BA first": formulas.MultipliesTheAdaptersFirst(),
    "merged": formulas.Merges(),
    "concatenated": formulas.Concatenates(),
    "rounds once": formulas.RoundsOnce(),
    "S in float32": formulas.KeepsTheMiddleWide(),
    "rank by rank": formulas.SumsRankByRank(),
    "eager": formulas.Eager(),
    "flattened": formulas.Flattens(),
    "checkpointed": formulas.Checkpoints(),
    "compiled": formulas.Compiled(),
    "split K in 2": ProductsBy(products.split(2)),
    "split K in 4": ProductsBy(products.split(4)),
    "split K in 16": ProductsBy(products.split(16)),
    "interleaved": ProductsBy(products.interleaved),
    "reversed": ProductsBy(products.reversed_order),
    "shuffled": ProductsBy(products.shuffled),
    "pairwise": ProductsBy(products.pairwise),
    "tiled": ProductsBy(products.tiled),
    "padded": ProductsBy(products.padded),
    "transposed": ProductsBy(products.transposed),
    "float64 inside": ProductsBy(products.doubled),
    "einsum": ProductsBy(products.by_einsum),
    "bmm": ProductsBy(products.by_bmm),
    "broadcast": ProductsBy(products.by_broadcast),
    "vmap": ProductsBy(products.by_vmap),
}
