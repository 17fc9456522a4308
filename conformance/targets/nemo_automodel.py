"""NeMo Automodel's own classes and functions: `loraspec run conformance.targets.nemo_automodel`.

`LinearLoRA` is NeMo's default layer, which is memory-efficient; `conformance.targets.nemo_automodel:plain` is the layer
without that option, and `…:triton` the layer with Triton kernels, interpreted without a GPU (`--lane interpreter`).
NeMo 0.7.0 has `use_dora` and `use_memory_efficient_lora` in the middle of the documented arguments; here they are last.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from typing import Any

import torch
from torch import nn

from conformance.targets.wrapped_layer import check, library, version_of

WRITTEN_FOR = ("nemo-automodel", "0.7.0", "ci/peers builds an environment with it")
with library(*WRITTEN_FOR), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and optional packages warn while NeMo is imported
    from nemo_automodel.components._peft import lora as nemo
    from nemo_automodel.components._peft import lora_kernel
    from nemo_automodel.components._peft.lora import LinearLoRA, PeftConfig
    from nemo_automodel.components._peft.module_matcher import ModuleMatcher, wildcard_match

__all__ = [
    "LinearLoRA",
    "ModuleMatcher",
    "PeftConfig",
    "apply_lora_to_linear_modules",
    "patch_linear_module",
    "plain",
    "triton",
    "wildcard_match",
]

VERSION = version_of("nemo-automodel")
NO_RSLORA = {"rslora": "absent"}
CHECKED_LATER = "PeftConfig is a plain dataclass: a value is checked where it is used"
READS_ITS_OWN = "from_dict reads what NeMo saved beside a checkpoint, and takes the keys it knows"
CONFORMANCE = {
    "name": "NeMo Automodel LinearLoRA",
    "version": VERSION,
    "features": {
        **NO_RSLORA,
        "name_rule": "wildcards",  # of the full name: `*q_proj`, where NeMo's docstring has `q_proj`
        "output_head": "chosen",
        "no_match": "count alone",
        "shared_names": "first name",
        "pattern_lists": "held",
        "second_config": "absent",  # a call freezes the whole model, adapters of an earlier one too
        "argument_checks": "when used",
    },
    "deviations": {
        "MOD-TRAINING-FLAG": "lora_A and lora_B, linear layers that have no use for a mode, are in training mode",
        "MOD-MATCHER": "a pattern may choose expert modules too: match() leaves a module's type to its caller",
        "CFG-FIELDS": "0.7.0 has use_dora before dropout; fields are given by keyword",
        "CFG-DTYPE": "the name of a dtype becomes one when a layer is patched",
        "CFG-LISTS": "None and a single string become lists in ModuleMatcher",
        "CFG-OWN-LISTS": "a plain dataclass holds the list it is given",
        "CFG-UNKNOWN": READS_ITS_OWN,
        "CFG-UNKNOWN-FALSY": READS_ITS_OWN,
        "CFG-TYPE": CHECKED_LATER,
        "CFG-RANGE": CHECKED_LATER,
        "CFG-NAN": CHECKED_LATER,
    },
}
HAS_GPU = torch.cuda.is_available()


def patch_linear_module(
    orig_linear: nn.Module,
    dim: int = 8,
    alpha: Any = 32,
    dropout: float = 0.0,
    dropout_position: str = "post",
    lora_A_init_method: str = "xavier",
    lora_dtype: Any = None,
    use_triton: bool = True,
    *,
    use_dora: bool = False,
    use_memory_efficient_lora: bool = True,
) -> nn.Module:
    """NeMo's function, called by keyword; without a GPU, which its kernels need, use_triton is False."""
    return nemo.patch_linear_module(  # type: ignore[no-any-return]
        orig_linear,
        dim=dim,
        alpha=alpha,
        use_dora=use_dora,
        dropout=dropout,
        dropout_position=dropout_position,
        lora_A_init_method=lora_A_init_method,
        lora_dtype=lora_dtype,
        use_memory_efficient_lora=use_memory_efficient_lora,
        use_triton=use_triton and HAS_GPU,
    )


def apply_lora_to_linear_modules(model: nn.Module, peft_config: Any) -> int:
    """NeMo's function; without a GPU, use_triton is False as in `patch_linear_module`."""
    if peft_config.use_triton and not HAS_GPU:
        peft_config = dataclasses.replace(peft_config, use_triton=False)
    return nemo.apply_lora_to_linear_modules(model, peft_config)  # type: ignore[no-any-return]


def _plain_layer(orig_linear: nn.Module, *args: Any, use_memory_efficient_lora: bool = False, **options: Any) -> Any:
    return LinearLoRA(orig_linear, *args, use_memory_efficient_lora=use_memory_efficient_lora, **options)


class plain:  # noqa: N801  (a target, named as a module would be)
    """The layer with `use_memory_efficient_lora=False`: autograd over two linear layers."""

    CONFORMANCE = {"name": "NeMo Automodel LinearLoRA, plain", "version": VERSION, "features": NO_RSLORA}  # noqa: RUF012
    LinearLoRA = staticmethod(_plain_layer)


TRACED = "torch.compile would trace the interpreter, not the kernels"
NOT_INTERPRETED = {} if HAS_GPU else {"LAY-COMPILE": TRACED, "LIFE-LAYER-COMPILE": TRACED}

# The interpreter multiplies bfloat16 wrongly, and the kernels accumulate float64 in float32.
TRITON_DTYPES = ("float32", "float16", "bfloat16") if HAS_GPU else ("float32", "float16")


@functools.cache
def _prepare_kernels() -> None:
    """Keep one configuration if the kernels are interpreted: autotuning needs a GPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        for kernel in (lora_kernel.lora_forward_kernel, lora_kernel.lora_da_dx_kernel, lora_kernel.lora_db_kernel):
            del kernel.configs[1:]


def _declared(layer: Any, orig_linear: nn.Linear, *args: Any, **options: Any) -> Any:
    _prepare_kernels()
    kind = str(orig_linear.weight.dtype).removeprefix("torch.")
    if kind not in TRITON_DTYPES:
        raise NotImplementedError(f"{kind} is not a dtype in which the Triton kernels are judged: {TRITON_DTYPES}")
    return layer(orig_linear, *args, **options)


class triton:  # noqa: N801
    """The layer with Triton kernels, in the dtypes that the kernels support on this machine."""

    CONFORMANCE = {  # noqa: RUF012
        "name": "NeMo Automodel TritonLinearLoRA",
        "version": VERSION,
        "dtypes": TRITON_DTYPES,
        "features": NO_RSLORA,
        "deviations": NOT_INTERPRETED,
    }
    LinearLoRA = staticmethod(functools.partial(_declared, LinearLoRA))
    TritonLinearLoRA = staticmethod(functools.partial(_declared, nemo.TritonLinearLoRA))


with library(*WRITTEN_FOR):
    check(LinearLoRA)
