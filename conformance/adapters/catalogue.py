"""The golden adapters, each with what it shows; ranks and alphas are stated per module, as PEFT 0.21.2 applies them."""

from __future__ import annotations

from typing import Any

from conformance.adapters.recipe import GoldenAdapter, Update

_SHAPES = {
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (12, 8),
    "mlp.up_proj": (12, 8),
    "mlp.down_proj": (8, 12),
}
Q, K, V, OUT = (f"self_attn.{letter}_proj" for letter in "qkvo")
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"


def _llama(modules: tuple[str, ...], rank: int, alpha: float, layers: tuple[int, ...] = (0, 1)) -> tuple[Update, ...]:
    """The updates of some modules in some layers of a Llama model."""
    return tuple(_update(f"model.layers.{layer}.{module}", rank, alpha) for layer in layers for module in modules)


def _update(module: str, rank: int, alpha: float) -> Update:
    shape = _SHAPES.get(module.partition("layers.")[2].partition(".")[2], (12, 8))  # else the head's
    return Update(module, f"{module}.weight", shape, rank, alpha)


def _gpt2(module: str, shape: tuple[int, int], rank: int, alpha: float) -> Update:
    key = f"transformer.h.0.{module}"
    return Update(key, f"{key}.weight", shape, rank, alpha, "conv1d")


def _experts(rank: int, alpha: float) -> tuple[Update, ...]:
    experts = "model.layers.0.mlp.experts"
    return (
        Update(f"{experts}.base_layer", f"{experts}.gate_up_proj", (3, 12, 8), rank, alpha, "experts"),
        Update(experts, f"{experts}.down_proj", (3, 8, 6), rank, alpha, "experts"),
    )


def _config(rank: int, alpha: float, targets: Any, **more: Any) -> dict[str, Any]:
    return {"r": rank, "lora_alpha": alpha, "target_modules": targets, **more}


_QV = ["q_proj", "v_proj"]
_TIED = ("tied", "share", "lm_head", "output.weight")
_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
_EXPERT_WORDS = ("expert", "target_parameters", "moe")
_COPY_WORDS = ("modules_to_save", "lm_head")

GOLDEN: tuple[GoldenAdapter, ...] = (
    GoldenAdapter("plain", "llama", "alpha = r, two targets", _config(2, 2, _QV), _llama((Q, V), 2, 2)),
    GoldenAdapter("alpha", "llama", "the scale alpha/r", _config(4, 6, _QV), _llama((Q, V), 4, 6)),
    GoldenAdapter(
        "all-linear",
        "llama",
        "every linear layer of a block",
        _config(2, 3, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        _llama((Q, K, V, OUT, GATE, UP, DOWN), 2, 3),
    ),
    GoldenAdapter("wide-rank", "llama", "a rank above both sizes", _config(13, 13, _QV), _llama((Q, V), 13, 13)),
    GoldenAdapter(
        "rslora",
        "llama",
        "the scale alpha/√r",
        _config(2, 3, _QV, use_rslora=True),
        _llama((Q, V), 2, 3),
        ("rslora",),
    ),
    GoldenAdapter(
        "rank-pattern",
        "llama",
        "another rank by name",
        _config(2, 3, _QV, rank_pattern={"q_proj": 4}),
        _llama((Q,), 4, 3) + _llama((V,), 2, 3),
        ("rank_pattern",),
    ),
    GoldenAdapter(
        "alpha-pattern",
        "llama",
        "another alpha by name",
        _config(2, 3, _QV, alpha_pattern={"v_proj": 5}),
        _llama((Q,), 2, 3) + _llama((V,), 2, 5),
        ("alpha_pattern",),
    ),
    GoldenAdapter(
        "pattern-regex",
        "llama",
        "patterns that are regular expressions",
        _config(2, 3, _QV, rank_pattern={r"layers\.1\..*\.q_proj": 4}, alpha_pattern={r"layers\.\d+\..*\.v_proj": 5}),
        _llama((Q,), 2, 3, (0,)) + _llama((Q,), 4, 3, (1,)) + _llama((V,), 2, 5),
        ("rank_pattern", "alpha_pattern"),
    ),
    GoldenAdapter(
        "pattern-order",
        "llama",
        "of two patterns that match, the first holds",
        _config(2, 3, _QV, rank_pattern={"layers.1.self_attn.q_proj": 4, "q_proj": 1}),
        _llama((Q,), 1, 3, (0,)) + _llama((Q,), 4, 3, (1,)) + _llama((V,), 2, 3),
        ("rank_pattern",),
    ),
    GoldenAdapter(
        "rslora-patterns",
        "llama",
        "alpha/√r with the rank of the pattern",
        _config(2, 3, _QV, use_rslora=True, rank_pattern={"q_proj": 3}, alpha_pattern={"v_proj": 5}),
        _llama((Q,), 3, 3) + _llama((V,), 2, 5),
        ("rslora", "rank_pattern", "alpha_pattern"),
    ),
    GoldenAdapter(
        "dora",
        "llama",
        "the magnitude of each row",
        _config(2, 3, _QV, use_dora=True),
        _llama((Q, V), 2, 3),
        ("dora", "lora_magnitude"),
    ),
    GoldenAdapter(
        "regex-targets",
        "llama",
        "targets as one regular expression",
        _config(2, 3, r".*\.layers\.1\.self_attn\.[qv]_proj"),
        _llama((Q, V), 2, 3, (1,)),
        ("target_modules", "target module"),
    ),
    GoldenAdapter(
        "full-names",
        "llama",
        "targets as full names",
        _config(2, 3, [f"model.layers.1.{Q}", f"model.layers.1.{V}"]),
        _llama((Q, V), 2, 3, (1,)),
        ("target_modules", "target module"),
    ),
    GoldenAdapter(
        "one-of-three",
        "llama",
        "one of the three projections that libraries fuse",
        _config(2, 3, ["q_proj", "up_proj"]),
        _llama((Q, UP), 2, 3),
        ("k_proj", "v_proj", "qkv", "gate_proj", "target module"),
    ),
    GoldenAdapter(
        "excluded",
        "llama",
        "exclude_modules",
        _config(2, 3, _QV, exclude_modules=r".*\.layers\.0\..*"),
        _llama((Q, V), 2, 3, (1,)),
        ("exclude_modules",),
    ),
    GoldenAdapter(
        "layers-to-transform",
        "llama",
        "layers_to_transform",
        _config(2, 3, _QV, layers_to_transform=[1], layers_pattern="layers"),
        _llama((Q, V), 2, 3, (1,)),
        ("layers_to_transform",),
    ),
    GoldenAdapter(
        "lora-bias",
        "llama",
        "a bias of lora_B, which is scaled too",
        _config(2, 3, _QV, lora_bias=True),
        _llama((Q, V), 2, 3),
        ("lora_bias", "lora_b.bias"),
    ),
    GoldenAdapter(
        "trained-bias",
        "llama",
        "bias = lora_only: trained biases of the adapted layers",
        _config(2, 3, _QV, bias="lora_only"),
        _llama((Q, V), 2, 3),
        ("bias",),
        copies={f"model.layers.{layer}.{name}.bias": _SHAPES[name][:1] for layer in (0, 1) for name in (Q, V)},
    ),
    GoldenAdapter(
        "head",
        "llama",
        "an adapter on the output head",
        _config(2, 3, ["lm_head"]),
        (_update("lm_head", 2, 3),),
        ("lm_head",),
    ),
    GoldenAdapter(
        "tied-head",
        "llama-tied",
        "an adapter on the head alone, whose weight is the embedding's too",
        _config(2, 3, ["lm_head"]),
        (_update("lm_head", 2, 3),),
        _TIED,
    ),
    GoldenAdapter(
        "embedding",
        "llama",
        "an adapter on the embedding",
        _config(2, 3, ["embed_tokens"]),
        (Update("model.embed_tokens", "model.embed_tokens.weight", (12, 8), 2, 3, "embedding"),),
        ("embedding", "embed_tokens"),
    ),
    GoldenAdapter(
        "modules-to-save",
        "llama",
        "a whole head beside the adapters",
        _config(2, 3, _QV, modules_to_save=["lm_head"]),
        _llama((Q, V), 2, 3),
        _COPY_WORDS,
        copies={"lm_head.weight": (12, 8)},
    ),
    GoldenAdapter("float16", "llama", "a file in float16", _config(2, 3, _QV), _llama((Q, V), 2, 3), dtype="float16"),
    GoldenAdapter(
        "bfloat16", "llama", "a file in bfloat16", _config(2, 3, _QV), _llama((Q, V), 2, 3), dtype="bfloat16"
    ),
    GoldenAdapter(
        "no-prefix",
        "llama",
        "names without base_model.model.",
        _config(2, 3, _QV),
        _llama((Q, V), 2, 3),
        ("prefix", "base_model.model", "expected"),
        prefix="",
    ),
    GoldenAdapter(
        "conv1d",
        "gpt2",
        "fan_in_fan_out: weights [in, out]",
        _config(2, 3, ["c_attn", "c_fc"], fan_in_fan_out=True),
        (_gpt2("attn.c_attn", (8, 24), 2, 3), _gpt2("mlp.c_fc", (8, 32), 2, 3)),
        ("conv1d", "fan_in_fan_out", "gpt2"),
    ),
    GoldenAdapter(
        "near-names",
        "gpt2",
        "attn.c_proj, not mlp.c_proj",
        _config(2, 3, ["attn.c_proj"], fan_in_fan_out=True),
        (_gpt2("attn.c_proj", (8, 8), 2, 3),),
        ("conv1d", "fan_in_fan_out", "gpt2"),
    ),
    GoldenAdapter(
        "experts",
        "mixtral",
        "target_parameters: an update for each expert",
        _config(2, 3, [], target_parameters=_EXPERTS),
        _experts(2, 3),
        _EXPERT_WORDS,
    ),
    GoldenAdapter(
        "experts-rslora",
        "mixtral",
        "experts with the scale alpha/√r",
        _config(3, 3, [], target_parameters=_EXPERTS, use_rslora=True),
        _experts(3, 3),
        (*_EXPERT_WORDS, "rslora"),
    ),
)
BY_NAME = {adapter.name: adapter for adapter in GOLDEN}
