"""The dropout mask in Triton: whether an element is kept is computed from its row and column.

The generator is that of `optimized.philox`, which describes the design.
"""
# mypy: allow-incomplete-defs, allow-untyped-calls

import triton
import triton.language as tl

NONE_DROPPED = (0, 0)  # the seed and limit of a launch that computes no mask


@triton.jit
def is_kept(seed, limit, rows, first, WIDTH: tl.constexpr):
    """The mask [rows, WIDTH] of these rows and the WIDTH columns from `first`, a multiple of 8."""
    # Words keep the shape [1, groups] or [rows, 1] while they depend only on a column or a row, for two rounds.
    key_a = seed.to(tl.uint32)
    key_b = (seed >> 32).to(tl.uint32)
    words_0 = (first // 8 + tl.arange(0, WIDTH // 8)).to(tl.uint32)[None, :]
    words_1 = rows.to(tl.uint32)[:, None]
    product_a = words_0.to(tl.uint64) * 0xD2511F53
    words_0 = words_1 ^ key_a
    words_1 = tl.full((1, 1), 0, tl.uint32)
    words_2 = (product_a >> 32).to(tl.uint32) ^ key_b
    words_3 = product_a.to(tl.uint32)
    # Walks the six rounds after the first, whose other product is 0.
    for _ in tl.static_range(6):
        key_a = tl.add(key_a, 0x9E3779B9, sanitize_overflow=False)  # the sum wraps
        key_b = tl.add(key_b, 0xBB67AE85, sanitize_overflow=False)
        product_a = words_0.to(tl.uint64) * 0xD2511F53
        product_b = words_2.to(tl.uint64) * 0xCD9E8D57
        words_0 = (product_b >> 32).to(tl.uint32) ^ words_1 ^ key_a
        words_1 = product_b.to(tl.uint32)
        words_2 = (product_a >> 32).to(tl.uint32) ^ words_3 ^ key_b
        words_3 = product_a.to(tl.uint32)
    bound = limit.to(tl.uint32) << 16
    even = tl.join(
        tl.join(words_0 << 16 < bound, words_2 << 16 < bound), tl.join(words_1 << 16 < bound, words_3 << 16 < bound)
    )
    odd = tl.join(tl.join(words_0 < bound, words_2 < bound), tl.join(words_1 < bound, words_3 < bound))
    return tl.join(even, odd).reshape(rows.shape[0], WIDTH)
