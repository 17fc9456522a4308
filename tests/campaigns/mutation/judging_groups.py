"""The groups of clauses that can detect a defect in a file, the likeliest first."""

from __future__ import annotations

from fnmatch import fnmatch

NUMERIC = ("linear", "layer", "merge", "dora", "model", "life")
EVERY_LAYER = ("linear", "layer", "fused", "dora", "experts", "batched", "quantised", "life")
# the first pattern that a file's path matches, below its package, decides
RULES = (
    ("service/*", ("remote",)),
    ("encrypted/*", ("fhe", "remote")),
    ("files/expert_*", ("checkpoint", "experts")),
    ("files/*", ("checkpoint", "life")),
    ("packed/*", ("quantised",)),
    ("*packed*", ("quantised", "model", "life")),
    ("stored_weight.py", ("quantised", "model")),
    ("*expert*", ("experts", "model", "checkpoint")),
    ("*padded*", ("batched",)),
    ("*batch*", ("batched",)),
    ("segments.py", ("batched",)),
    ("dense_adapters.py", ("batched",)),
    ("*grouped*", ("experts", "batched")),
    ("*tiled.py", ("experts", "batched")),
    ("tiled_linear.py", ("experts", "batched")),
    ("*row_tiles.py", ("experts", "batched")),
    ("sorted_rows.py", ("experts", "batched")),
    ("groups.py", ("experts", "batched")),
    ("dispatch/routes.py", ("experts", "batched")),
    ("dispatch/custom_linear.py", ("hybrid", "training")),
    ("*int8_linear.py", ("fhe",)),
    ("dispatch/integers.py", ("fhe",)),
    ("quantization.py", ("fhe", "hybrid", "remote")),
    ("split_model.py", ("fhe", "hybrid", "remote")),
    ("hybrid.py", ("hybrid", "training", "fhe")),
    ("train*.py", ("training", "life")),
    ("step_state.py", ("training", "life")),
    ("rollback.py", ("training", "model", "life")),
    ("distributed.py", ("distributed",)),
    ("sharded.py", ("distributed", "gradnorm")),
    ("gradnorm.py", ("gradnorm", "training", "distributed")),
    ("checkpoint.py", ("checkpoint", "life")),
    ("config.py", ("config", "model")),
    ("matching.py", ("model", "hybrid")),
    ("*model.py", ("model", "life")),
    ("layer_patterns.py", ("model",)),
    ("layer_replacement.py", ("hybrid", "model", "fhe")),
    ("patched_class.py", ("model", "layer")),
    ("compiled_names.py", ("model", "checkpoint")),
    ("base_layer.py", NUMERIC),
    ("dora.py", ("dora", "model", "life")),
    ("layer.py", ("layer", "merge", "dora", "model", "training", "life")),
    ("linear.py", ("linear", "layer", "merge", "dora", "model", "life")),
    ("*adapter.py", ("linear", "layer")),
    ("*philox.py", ("linear", "layer", "fused")),
    ("*dropout*.py", ("linear", "layer", "fused")),
    ("*qkv.py", ("fused",)),
    ("*mlp.py", ("fused",)),
    ("*projection*.py", ("fused",)),
    ("*blocks.py", ("fused",)),
    ("*activation*.py", ("fused",)),
    ("nodes/*", ("linear", "layer", "fused", "life")),
    ("kernels/*", ("linear", "layer", "fused", "experts", "batched", "quantised")),
    ("dispatch/*", EVERY_LAYER),
    ("matrices.py", EVERY_LAYER),
    ("products.py", EVERY_LAYER),
    ("tuned_kernels.py", EVERY_LAYER),
    ("torch_internals.py", (*EVERY_LAYER, "gradnorm", "fhe")),
)


# Targets other than the file's own package that run a file: tiles of rows serve GPUs, so only a target of the tests has
# them; a backend of encryption is a target of its own.
TILED, SEAL, CONCRETE = "tests.targets.tiled", "conformance.targets.seal", "conformance.targets.concrete"
TARGETS = (
    ("optimized/kernels/grouped_*.py", (TILED,)),
    ("optimized/nodes/tiled.py", (TILED,)),
    ("optimized/tiled_linear.py", (TILED,)),
    ("optimized/row_tiles.py", (TILED,)),
    ("optimized/dispatch/row_tiles.py", (TILED,)),
    ("reference/encrypted/*", (SEAL, CONCRETE, "reference")),
)


def targets_of(file: str) -> tuple[str, ...]:
    """The targets that run a file such as ``reference/packed/formats.py``: mostly its own package."""
    return next((targets for pattern, targets in TARGETS if fnmatch(file, pattern)), (file.partition("/")[0],))


def groups_of(file: str) -> tuple[str, ...]:
    """The groups for a file such as ``reference/packed/formats.py``.

    Raises:
        LookupError: if no rule matches; a new file needs one.
    """
    below = file.partition("/")[2]
    for pattern, groups in RULES:
        if fnmatch(below, pattern):
            return groups
    raise LookupError(f"{file}: no rule in judging_groups.RULES says which groups can detect a defect in it")
