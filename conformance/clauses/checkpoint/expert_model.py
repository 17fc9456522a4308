"""A small model with two modules of experts, its adapters with exact numbers, and their files in PEFT's layout."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from conformance.cases.case import Case, Space
from conformance.clauses.checkpoint.layer_patterns import pattern_value
from conformance.clauses.checkpoint.peft_files import PREFIX, peft_config
from conformance.clauses.experts.mixture import adapters_of
from conformance.clauses.experts.small_experts import KINDS
from conformance.clauses.model.target_calls import make_config
from conformance.judgement.outcomes import require
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

Pair = tuple[Tensor, Tensor]  # A [E, r, K] and B [E, N, r]
NEEDS = ("patch_moe_module", "PeftConfig(target_parameters)")
SLOTS = 2


@dataclass(frozen=True)
class ExpertFileCase(Case):
    """A model with adapters on experts that is saved or loaded.

    Fields:
        experts, k, n, r, alpha, rslora: the number of experts, the hidden and the inner width, options of the adapters.
        kind: as in a MixtureCase.   chosen: the adapted projections, `both`, `first` or `down`.
        order: the projection that a module registers first.   model: `plain`, or `adapted` before loading.
        how: the variant, where a clause has several.   place: an index into the clause's table.
    """

    experts: int = 2
    k: int = 4
    n: int = 6
    r: int = 1
    alpha: int = 8
    rslora: bool = False
    kind: str = "gated"
    chosen: str = "both"
    order: str = "first"
    model: str = "plain"
    how: str = ""
    place: int = 0

    @property
    def projections(self) -> tuple[str, ...]:
        """The adapted projections."""
        first = KINDS[self.kind].first
        return {"both": (first, "down_proj"), "first": (first,), "down": ("down_proj",)}[self.chosen]

    @property
    def targets(self) -> list[str]:
        """The value of target_parameters."""
        return [f"experts.{name}" for name in self.projections]


EXPERT_FILES = Space(
    ExpertFileCase,
    experts=(3, 2, 4),
    k=(4, 8),
    n=(6, 5),
    r=(2, 1, 3),
    alpha=(6, 1, 16),
    rslora=(False, True),
    kind=tuple(KINDS),
    chosen=("both", "first", "down"),
    order=("first", "down"),
    model=("plain", "adapted"),
)
SIMPLE = EXPERT_FILES.narrowed(rslora=(False,), order=("first",), chosen=("both",), model=("plain",), alpha=(6, 16))


class ExpertModel(nn.Module):
    """Two modules of experts, `layers.<i>.mlp.experts`, whose rows choose them in turn."""

    def __init__(self, case: ExpertFileCase, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_experts_per_tok=SLOTS)
        self.layers = nn.ModuleList()
        for _ in range(2):
            layer: Any = nn.Module()
            layer.mlp = nn.Module()
            layer.mlp.experts = KINDS[case.kind](case.experts, case.k, case.n, SLOTS, dtype)
            if case.order == "down":
                own = layer.mlp.experts._parameters
                own[KINDS[case.kind].first] = own.pop(KINDS[case.kind].first)
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        index = torch.arange(len(x) * SLOTS, device=x.device).reshape(-1, SLOTS)
        p = torch.full(index.shape, 0.5, dtype=x.dtype, device=x.device)
        for layer in self.layers:
            experts: Any = layer.mlp.experts  # type: ignore[union-attr]
            x = x + experts(x, index % experts.num_experts, p)
        return x


def expert_model(subject: Subject, case: ExpertFileCase) -> ExpertModel:
    """A model without adapters, whose weights depend on the case alone."""
    generator = torch.Generator().manual_seed(case.seed)
    model = ExpertModel(case, getattr(torch, case.dtype)).requires_grad_(False)
    for _, parameter in sorted(model.named_parameters()):
        width = case.k if parameter.ndim == 3 else 4
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(drawn / math.sqrt(width))
    return model.to(subject.device)


def modules(model: ExpertModel) -> dict[str, Any]:
    """The modules of experts by name."""
    return {name: m for name, m in model.named_modules() if name.endswith(".experts")}


def adapt(subject: Subject, model: ExpertModel, case: ExpertFileCase, **changed: Any) -> Any:
    """Put adapters into a model by `apply_lora_to_linear_modules`, and return the config."""
    options: dict[str, Any] = {"dim": case.r, "alpha": case.alpha, "target_parameters": case.targets}
    config = make_config(subject, **(options | ({"use_rslora": True} if case.rslora else {}) | changed))
    with calling_quietly("apply_lora_to_linear_modules(model, config)"):
        subject.target.apply_lora_to_linear_modules(model, config)
    return config


def trained(subject: Subject, case: ExpertFileCase, **changed: Any) -> tuple[ExpertModel, Any]:
    """A model whose adapters have nonzero values, as after training, and its config."""
    model = expert_model(subject, case)
    config = adapt(subject, model, case, **changed)
    generator = torch.Generator().manual_seed(case.seed + 1)
    with torch.no_grad():
        for pair in pairs_of(subject, model, case).values():
            for tensor in pair:
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2)
    return model, config


def pairs_of(subject: Subject, model: ExpertModel, case: ExpertFileCase) -> dict[str, Pair]:
    """A and B of each adapted projection by its full name, as the target has them."""
    found = {}
    for name, module in modules(model).items():
        for projection, pair in adapters_of(subject, module, case.projections).items():
            found[f"{name}.{projection}"] = pair
    return found


def drawn_pairs(case: ExpertFileCase, ranks: Mapping[str, int] | None = None) -> dict[str, Pair]:
    """A and B of each adapted projection by its full name; `ranks` is a rank_pattern."""
    generator = torch.Generator().manual_seed(case.seed + 2)
    model, found = ExpertModel(case, torch.float64), {}
    for name, module in modules(model).items():
        for projection in case.projections:
            full = f"{name}.{projection}"
            _, n, k = stored(module, getattr(module, projection)).shape
            r = pattern_value(dict(ranks or {}), full, case.r)
            A, B = (torch.randn(case.experts, *s, generator=generator, dtype=torch.float64) for s in ((r, k), (n, r)))
            found[full] = A / 2, B / 2
    return found


def stored(module: Any, weight: Tensor) -> Tensor:
    """A weight as [E, N, K], from the order in which a module stores it, or back."""
    return weight.mT if module.is_transposed else weight


def with_updates(model: ExpertModel, pairs: Mapping[str, Pair], scales: Mapping[str, float]) -> ExpertModel:
    """A copy of a plain model with W_e + s·B_e A_e in place of each weight."""
    whole = copy.deepcopy(model)
    for name, module in modules(whole).items():
        for projection, weight in list(module.named_parameters(recurse=False)):
            if (full := f"{name}.{projection}") in pairs:
                A, B = (t.to(weight) for t in pairs[full])
                with torch.no_grad():
                    weight.add_(stored(module, scales[full] * B @ A))
    return whole


def packed(model: ExpertModel, pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    """The tensors of PEFT's file: A expert by expert, B with an expert in each E-th column."""
    found = {}
    for name, module in modules(model).items():
        adapted = [p for p in module._parameters if f"{name}.{p}" in pairs]
        for depth, projection in enumerate(reversed(adapted)):
            A, B = pairs[f"{name}.{projection}"]
            where = f"{PREFIX}{name}.{'base_layer.' * depth}"
            found[f"{where}lora_A.weight"] = A.flatten(0, 1)
            found[f"{where}lora_B.weight"] = B.permute(1, 2, 0).flatten(1, 2)
    return found


def fields(case: ExpertFileCase, **options: Any) -> dict[str, Any]:
    """The fields of the config of such a file."""
    values = peft_config(case.r, case.alpha, [], target_parameters=case.targets, use_rslora=case.rslora)
    return values | options


def scales_in(values: Mapping[str, Any], names: Any) -> dict[str, float]:
    """The scale of each adapted projection by the fields of a file."""
    found = {}
    for full in names:
        r, alpha = (
            pattern_value(values.get(patterns) or {}, full, values[default])
            for patterns, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
        )
        found[full] = alpha / (math.sqrt(r) if values.get("use_rslora") else r)
    return found


def output(model: ExpertModel, case: ExpertFileCase) -> Tensor:
    """The output of a model for enough rows that each expert has some."""
    x = torch.randn(case.experts, case.k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad(), calling_quietly("the model's forward"):
        y: Tensor = model(x.to(next(model.parameters())))
    return y


def require_output(model: ExpertModel, expected: ExpertModel, case: ExpertFileCase, what: str) -> None:
    """Require that a model gives the output of another one, whose weights hold the updates."""
    found, wanted = output(model, case), output(expected, case)
    off = ((found - wanted).abs().max() / wanted.abs().max()).item()
    require(off < 1e-10, f"{what} is off by {off:.3g} of its largest value")
