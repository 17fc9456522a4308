"""The features that a right implementation may lack, or have by another convention.

Clauses without a feature are the *core*: the formula, its gradients, layouts, state and side effects. A clause of a
feature is not claimed where the target lacks the feature. A target has a feature if its callable takes the feature's
argument, unless `CONFORMANCE["features"]` says that it is absent. A named convention is judged by its own formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SUPPORTED, ABSENT = "supported", "absent"
AN_EFFECT = "an effect"  # what calls show of a feature that is neither absent nor of a known convention


@dataclass(frozen=True)
class Feature:
    """One feature.

    Attributes:
        title: its name in verdicts and pages.
        arguments: by group, the argument that shows the feature, `Class(argument)` or `function(argument)`, or the
            method that does, `Class.method`.
        conventions: the values that a target may declare; the first is the default.
        part_of: the feature without which it is absent too.
    """

    title: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    conventions: tuple[str, ...] = (SUPPORTED, ABSENT)
    part_of: str = ""

    @property
    def option(self) -> str:
        """The argument of a layer class that shows the feature; empty if no argument does."""
        owner, _, argument = self.arguments.get("layer", self.arguments.get("dora", "")).partition("(")
        return argument.rstrip(")") if owner == "LinearLoRA" else ""


def _of_layers(argument: str, **others: str) -> dict[str, str]:
    layer = f"LinearLoRA({argument})"
    return {"layer": layer, "merge": layer, "dora": layer, "distributed": layer, **others}


def _of_dora(title: str, *conventions: str, part_of: str = "") -> Feature:
    return Feature(title, {"dora": "LinearLoRA(use_dora)"}, conventions, part_of)


def _patch(argument: str) -> str:
    return f"patch_linear_module({argument})"


FEATURES: Mapping[str, Feature] = {
    "dropout": Feature(
        "dropout",
        _of_layers("dropout", linear="lora_linear(dropout)", model=_patch("dropout"), quantised=_patch("dropout")),
    ),
    "rslora": Feature("rsLoRA", _of_layers("use_rslora")),
    "adapter_dtype": Feature(
        "adapter dtype",
        _of_layers("lora_dtype", linear="lora_linear", model=_patch("lora_dtype")),
        (SUPPORTED, "input dtype", ABSENT),
    ),
    "initialisation": Feature(
        "choice of initialisation", _of_layers("lora_A_init_method", model=_patch("lora_A_init_method"))
    ),
    "dora_norm": _of_dora("DoRA norm", "constant", "differentiated"),
    "dora_bias": _of_dora("DoRA bias", "outside", "scaled", part_of="base_bias"),
    "dora_dropout": _of_dora("DoRA dropout", "change", "adapter"),
    "dora_zero_row": _of_dora("DoRA zero row", "refused", "nonfinite", "zero", "base"),
    "memory_efficient": Feature("memory-efficient mode", _of_layers("use_memory_efficient_lora")),
    "merging": Feature("merging", {"merge": "LinearLoRA.merge", "dora": "LinearLoRA.merge"}),
    "merged_state": Feature("state_dict of a merged layer", conventions=("unmerged", "merged")),
    "state_names": Feature("names in the state_dict", conventions=("standard", "other")),
    "pickling": Feature("pickling"),
    "inplace_output": Feature("in-place use of the output"),
    "autocast": Feature("autocast", conventions=(SUPPORTED, "input dtype", "layer dtype", ABSENT)),
    "autocast_updates": Feature("autocast after an update", conventions=("new values", "old values")),
    "name_rule": Feature(
        "name rule", conventions=("component or wildcards", "wildcards", "suffix", "component", "regex", "shell")
    ),
    "string_pattern": Feature("pattern given as a string", conventions=("one pattern", "regex", ABSENT)),
    "exclusions": Feature("exclusions", conventions=("alone", "combined", ABSENT)),
    "match_all": Feature("match_all_linear", conventions=(SUPPORTED, ABSENT)),
    "default_targets": Feature("default targets", conventions=(SUPPORTED, ABSENT)),
    "no_match": Feature("no match", conventions=("warning", "error", "count alone")),
    "output_head": Feature("output head", conventions=("left out", "chosen")),
    "shared_names": Feature("names of a shared module", conventions=("every name", "first name")),
    "second_config": Feature("a second config"),
    "pattern_lists": Feature("lists of patterns", conventions=("copied", "held")),
    "argument_checks": Feature("argument checks", conventions=("when patched", "when used")),
    "fused_blocks": Feature("fused blocks", conventions=(SUPPORTED, ABSENT)),
    "linear_only": Feature("linear layers only", conventions=(SUPPORTED, ABSENT)),
    "in_place": Feature("patching in place", conventions=(SUPPORTED, ABSENT)),
    "alpha": Feature("alpha", _of_layers("alpha")),
    "zero_alpha": Feature("alpha of 0", _of_layers("alpha"), (SUPPORTED, "rank", ABSENT), part_of="alpha"),
    "large_rank": Feature("ranks above the layer's sizes", _of_layers("dim")),
    "base_bias": Feature("bias of the base layer"),
    "vector_inputs": Feature("x without leading dimensions"),
    "full_dropout": Feature("dropout of 1", _of_layers("dropout", linear="lora_linear(dropout)"), part_of="dropout"),
    "eval_mode": Feature("eval mode", conventions=("separate", "merged")),
    "activation_silu": Feature("activation silu"),
    "activation_gelu": Feature("activation gelu"),
    "activation_gelu_tanh": Feature("activation gelu_tanh"),
    "activation_relu2": Feature("activation relu2"),
    "ungated": Feature("blocks without a gate"),
    "block_bias": Feature("biases in blocks"),
    "batched_gradients": Feature("gradients of batches"),
    "norm_dtype": Feature("dtype of the norm", conventions=("float32", "gradients")),
    "mixed_meshes": Feature("norm over several meshes"),
    "window_loss": Feature("loss of a window", conventions=("batches", "items")),
    "training_flags": Feature("training flags of modules", conventions=("kept", "set")),
    "answer_check": Feature("checked answers"),
    "fresh_keys": Feature("new keys for each input"),
    "shared_inputs": Feature("shared encrypted inputs"),
    "early_scaling": Feature("scaling before overflow", part_of="alpha"),
    "compute_dtype": Feature("compute dtype", {"quantised": "packed_linear(compute_dtype)"}),
    "block_sizes": Feature("block sizes", conventions=("any", "standard")),
    "format_nf4": Feature("format nf4"),
    "format_fp4": Feature("format fp4"),
    "nested_absmax": Feature("nested scales"),
    "format_int8_bitsandbytes": Feature("format int8 of bitsandbytes"),
    "format_int8_torchao": Feature("format int8 of torchao"),
    "format_fp8": Feature("format fp8"),
    "format_int4": Feature("format int4"),
    "packed_storage": Feature("storage of a packed base", conventions=("kept", "repacked")),
    "packed_inputs": Feature("x of a packed base in eval mode", conventions=("as given", "int8 rows")),
    "packed_merge": Feature("merging into a packed base", conventions=("refused", "requantised", ABSENT)),
    "packed_dora": Feature("DoRA on a packed base", {"quantised": _patch("use_dora")}),
    "format_hqq": Feature("format HQQ", conventions=("read", "packed", ABSENT)),
}


def meant(name: str, convention: str) -> str:
    """The remark in a failure that looks like another convention: how to declare that one."""
    return f' (declare the feature {name} as "{convention}" if it is meant)'
