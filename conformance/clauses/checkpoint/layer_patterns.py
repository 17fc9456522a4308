"""Files with rank_pattern and alpha_pattern, which give some layers another rank or alpha."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.clauses.checkpoint.peft_files import PREFIX, peft_config, put
from conformance.clauses.checkpoint.target_calls import PLAIN, FileCase, folder, output, raised, save, toy
from conformance.clauses.model.small_models import TOY_LINEARS
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import fault_of
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

Patterns = tuple[dict[str, int], dict[str, int]]
# (rank_pattern, alpha_pattern); a file sorts its patterns, and the first one that matches counts
PATTERNS: tuple[Patterns, ...] = (
    ({"fc1": 3}, {}),
    ({}, {"q_proj": 5, r"blocks\.0\..*": 3}),
    ({r"blocks\.0\..*": 1, "fc1": 4}, {"fc2": 7}),
    ({"^head": 3, "q_proj|fc2": 1}, {"^head": 2, "blocks.1.fc1": 16}),
    ({r"[01]\.fc1": 4, "fc": 7}, {"proj": 9, "q_proj": 64}),  # `fc` and `proj` are no layer's last component
)


def pattern_value(patterns: dict[str, int], name: str, default: int) -> int:
    """The value for a layer by PEFT's rule."""
    for pattern in sorted(patterns):
        if re.match(rf"(.*\.)?({pattern})$", name):
            return patterns[pattern]
    return default


@clause(
    "CKP-PATTERNS",
    sentence="""A file with rank_pattern or alpha_pattern is refused with a ValueError, or each layer gets the rank and
    alpha of the first pattern, in the file's order, that as a regular expression matches the layer's name from its
    beginning, or from after a dot, to its end. The config that load_adapter returns then adapts another model alike,
    and save_adapter with it writes files that load again.""",
    why="A layer with another alpha silently computes another function.",
    cases=PLAIN.narrowed(chosen=("all",), r=(2, 6), place=tuple(range(len(PATTERNS))), rslora=(False, True)),
    dtypes=("float64",),
)
def test_patterns(subject: Subject, case: FileCase) -> None:
    ranks, alphas = PATTERNS[case.place]
    tensors, expected = _adapter(subject, case)
    options = {"rank_pattern": ranks, "alpha_pattern": alphas, "use_rslora": case.rslora}
    model = toy(subject, case)
    with folder() as path:
        put(Path(path), peft_config(case.r, case.alpha, list(TOY_LINEARS), **options), tensors)
        configs: list[Any] = []
        error = raised(lambda: configs.append(subject.target.load_adapter(model, str(path))))
    if isinstance(error, ValueError):
        return
    with fault_of("load_adapter"):
        require(error is None, f"load_adapter raised {error!r}: expected a ValueError, or each layer's rank and alpha")
        _require_close(model, expected, "the output")
    again, third = toy(subject, case), toy(subject, case)
    with calling_quietly("apply_lora_to_linear_modules(model, the config that load_adapter returned)"):
        subject.target.apply_lora_to_linear_modules(again, configs[0])
    with folder() as path:
        save(subject, model, configs[0], path)
        for other, what in ((again, "adapted with the returned config"), (third, "without adapters")):
            with calling_quietly(f"load_adapter of a saved file into a model {what}"):
                subject.target.load_adapter(other, str(path))
            with fault_of("save_adapter"):
                _require_close(other, expected, f"saved and loaded into a model {what}, the output")


def _adapter(subject: Subject, case: FileCase) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors of a file, and the output of the model with W + scale · B A in place of each W."""
    ranks, alphas = PATTERNS[case.place]
    generator = torch.Generator().manual_seed(case.seed)
    model: nn.Module = toy(subject, case)
    tensors: dict[str, torch.Tensor] = {}
    for name in TOY_LINEARS:
        weight: Any = model.get_submodule(name).weight
        rank, alpha = pattern_value(ranks, name, case.r), pattern_value(alphas, name, case.alpha)
        A = torch.randn(rank, weight.shape[1], generator=generator, dtype=torch.float64)
        B = torch.randn(weight.shape[0], rank, generator=generator, dtype=torch.float64)
        tensors |= {f"{PREFIX}{name}.lora_A.weight": A, f"{PREFIX}{name}.lora_B.weight": B}
        with torch.no_grad():
            weight.add_((B @ A * (alpha / rank ** (0.5 if case.rslora else 1))).to(weight))
    return tensors, output(model)


def _require_close(model: nn.Module, expected: torch.Tensor, what: str) -> None:
    off = ((output(model) - expected).abs().max() / expected.abs().max()).item()
    require(off < 1e-9, f"{what} is off by {off:.3g} of its largest value")
