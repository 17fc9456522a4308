"""Layers loaded from files in PEFT's format, which this suite writes itself, judged by the oracle."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conformance.cases.case import Space
from conformance.cases.linear_case import LinearCase, tamed
from conformance.cases.operands import Operands
from conformance.clauses.checkpoint.peft_files import PREFIX, peft_config, put
from conformance.clauses.checkpoint.target_calls import PLAIN, FileCase, folder, load, raised
from conformance.clauses.hybrid.module_tree import conv1d
from conformance.clauses.model.target_calls import make_config
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import LinearOracle
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import fault_of
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject, frozen_linear


@dataclass(frozen=True)
class LayerCase(LinearCase):
    """One linear layer and the file of its adapter.

    Fields:
        rslora: the file's use_rslora; alpha is then scale·√r.
        model: `adapted` before loading, with the same options, or `plain`.
        how: the variant, where a clause has several; `square` sets k and n to the rank.
    """

    rslora: bool = False
    model: str = "adapted"
    how: str = ""


def _tamed(case: LayerCase) -> LayerCase:
    fitted = tamed(case)
    assert isinstance(fitted, LayerCase)
    if fitted.how == "square":  # a transposed lora_A or lora_B then still has the right shape
        r = max(fitted.r, 2)
        return dataclasses.replace(fitted, k=r, n=r, r=r)
    return fitted


LAYERS = Space(
    LayerCase,
    tame=_tamed,
    m=(1, 3, 17),
    k=(1, 3, 16, 33),
    n=(1, 3, 16, 33),
    r=(1, 2, 4, 9),
    scale=(1.0, 2.0, 0.5, 4.0),
    bias=(False, True),
    values=("integers", "normal"),
    training=(False, True),
    rslora=(False, True),
    model=("adapted", "plain"),
)


class Holder(nn.Module):
    """A model with one layer, `inner.proj`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.proj = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner.proj(x)  # type: ignore[operator]
        return y


class Problem:
    """The model of a case, and the file of its adapter."""

    def __init__(self, subject: Subject, case: LayerCase) -> None:
        self.case, self.subject = case, subject
        self.operands = Operands(case, subject.device)
        self.model = Holder(frozen_linear(self.operands)).train(case.training)
        self.alpha = case.scale * (math.sqrt(case.r) if case.rslora else case.r)

    def adapt(self, **changed: Any) -> None:
        """Put an adapter with other values into the model, if the case says so."""
        if self.case.model != "adapted":
            return
        alpha = int(self.alpha) if self.alpha.is_integer() else self.alpha
        options = {"dim": self.case.r, "alpha": alpha, "target_modules": ["proj"]}
        if self.case.rslora:
            options["use_rslora"] = True
        config = make_config(self.subject, **(options | changed))
        with calling_quietly("apply_lora_to_linear_modules(model, config)"):
            self.subject.target.apply_lora_to_linear_modules(self.model, config)

    def put(self, path: Any, **options: Any) -> Path:
        """Write the adapter to a folder as PEFT does."""
        values = {name: self.operands.tensor(name) for name in ("lora_A", "lora_B")}
        tensors = {f"{PREFIX}inner.proj.{name}.weight": value for name, value in values.items() if value is not None}
        config = peft_config(self.case.r, self.alpha, ["proj"], use_rslora=self.case.rslora) | options
        return put(Path(path), config, tensors)

    def judge(self) -> float | None:
        """Judge the output of the model."""
        with torch.no_grad(), calling_quietly("the model's forward"):
            y = self.model(self.operands.tensor("x"))
        with fault_of("load_adapter"):
            return judge(y, LinearOracle(self.operands).y)


@clause(
    "CKP-PEFT",
    sentence="""After loading a file as PEFT writes it, a layer computes y = x Wᵀ + b + s·(x Aᵀ) Bᵀ with s =
    lora_alpha/r, or lora_alpha/√r with use_rslora. A model without adapters may be refused with a ValueError.""",
    cases=LAYERS.narrowed(how=("any", "square")),
)
def test_file_of_peft(subject: Subject, case: LayerCase) -> float | None:
    problem = Problem(subject, case)
    problem.adapt()
    with folder() as path:
        problem.put(path)
        if case.model == "plain" and isinstance(
            raised(lambda: subject.target.load_adapter(problem.model, path)), ValueError
        ):
            return None
        if case.model == "adapted":
            load(subject, problem.model, path)
    return problem.judge()


DIFFERENT: dict[str, dict[str, Any]] = {
    "alpha of the model": {"alpha": 3},
    "rslora of the model": {"use_rslora": True},
    "alpha_pattern": {"alpha_pattern": {"proj": 6}},
    "rank_pattern": {"rank_pattern": {"proj": 3}},
}


@clause(
    "CKP-SCALE",
    sentence="""If alpha or use_rslora of the model differ from the file's, or the file has alpha_pattern or
    rank_pattern, load_adapter raises a ValueError or the layer is scaled as the file says.""",
    why="A file loaded with the model's own scale silently gives another function.",
    cases=LAYERS.narrowed(
        how=tuple(DIFFERENT), rslora=(False,), model=("adapted",), r=(2, 4, 9), values=("normal",), scale=(2.0, 4.0)
    ),
    dtypes=("float64", "float32"),
)
def test_another_scale(subject: Subject, case: LayerCase) -> float | None:
    problem = Problem(subject, case)
    of_file = "pattern" in case.how
    problem.adapt(**({} if of_file else DIFFERENT[case.how]))
    with folder() as path:
        options = dict(DIFFERENT[case.how]) if of_file else {}
        if case.how == "alpha_pattern":
            options["lora_alpha"] = problem.alpha * 2  # the oracle computes with the pattern's alpha
            options["alpha_pattern"] = {"proj": problem.alpha}
        if case.how == "rank_pattern":
            options |= {"r": case.r + 1, "rank_pattern": {"proj": case.r}}
        error = raised(lambda: subject.target.load_adapter(problem.model, problem.put(path, **options)))
    if isinstance(error, Exception):
        require(
            isinstance(error, ValueError), f"load_adapter raised {error!r}: expected a ValueError, or the right scale"
        )
        return None
    return problem.judge()


class Lookup(nn.Module):
    """A model with one embedding, `embed`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)  # type: ignore[no-any-return]


@clause(
    "CKP-EMBEDDING",
    sentence="""A file with the adapter of an embedding (lora_embedding_A [r, V], lora_embedding_B [D, r]) is refused,
    or the embedding of token t becomes W[t] + s·(B A)ᵀ[t].""",
    cases=PLAIN.narrowed(chosen=("q_proj",)),
    dtypes=("float64",),
    weight=0.34,
)
def test_embedding(subject: Subject, case: FileCase) -> None:
    torch.manual_seed(case.seed)
    model = Lookup().double().to(subject.device).requires_grad_(False)
    A, B = torch.randn(case.r, 7).double(), torch.randn(4, case.r).double()
    tokens = torch.arange(7, device=subject.device)
    expected = model.embed.weight.cpu() + case.alpha / case.r * (B @ A).T
    tensors = {f"{PREFIX}embed.lora_embedding_A": A, f"{PREFIX}embed.lora_embedding_B": B}
    _right_or_refused(subject, model, (tokens, expected), case, tensors, ["embed"])


@clause(
    "CKP-CONV1D",
    sentence="""A file with the adapter of a Conv1D, whose weight is [in, out] (fan_in_fan_out), is refused, or the
    layer computes y = x W + b + s·(x Aᵀ) Bᵀ.""",
    cases=PLAIN.narrowed(chosen=("q_proj",)),
    dtypes=("float64",),
    library="transformers",
    weight=0.34,
)
def test_conv1d(subject: Subject, case: FileCase) -> None:
    torch.manual_seed(case.seed)
    layer: Any = conv1d(5, 5)
    model = Holder(layer).double().to(subject.device).requires_grad_(False)
    A, B, x = torch.randn(case.r, 5).double(), torch.randn(5, case.r).double(), torch.randn(3, 5).double()
    expected = x @ layer.weight.cpu() + layer.bias.cpu() + case.alpha / case.r * (x @ A.T @ B.T)
    tensors = {f"{PREFIX}inner.proj.lora_A.weight": A, f"{PREFIX}inner.proj.lora_B.weight": B}
    _right_or_refused(subject, model, (x.to(subject.device), expected), case, tensors, ["proj"], fan_in_fan_out=True)


def _right_or_refused(
    subject: Subject,
    model: nn.Module,
    example: tuple[Tensor, Tensor],
    case: FileCase,
    tensors: dict[str, Tensor],
    targets: list[str],
    **options: Any,
) -> None:
    """Load a file that need not be supported: require an error, or a model with the expected output."""
    x, expected = example
    with folder() as path:
        put(Path(path), peft_config(case.r, case.alpha, targets, **options), tensors)
        if isinstance(raised(lambda: subject.target.load_adapter(model, path)), Exception):
            return
    with torch.no_grad(), calling_quietly("the model's forward"):
        error = (model(x).cpu() - expected).abs().max().item()
    require(error < 1e-10, f"load_adapter refused nothing, and the output is off by {error:.3g}")
